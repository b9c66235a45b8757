from benchmarks.studies.four_room.study import main

main()
