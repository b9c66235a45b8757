from benchmarks.studies.awr.study import main

main()
