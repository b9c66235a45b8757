from benchmarks.studies.guide.study import main

main()
