from benchmarks.studies.expectile.study import main

main()
