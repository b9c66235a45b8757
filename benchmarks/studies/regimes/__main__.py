from benchmarks.studies.regimes.study import main

main()
