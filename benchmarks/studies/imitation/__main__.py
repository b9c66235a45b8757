from benchmarks.studies.imitation.study import main

main()
