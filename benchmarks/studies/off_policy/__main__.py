from benchmarks.studies.off_policy.study import main

main()
