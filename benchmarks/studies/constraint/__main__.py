from benchmarks.studies.constraint.study import main

main()
