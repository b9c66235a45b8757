from benchmarks.studies.support.study import main

main()
