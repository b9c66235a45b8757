from benchmarks.studies.dataset_size.study import main

main()
