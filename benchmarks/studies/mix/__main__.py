from benchmarks.studies.mix.study import main

main()
