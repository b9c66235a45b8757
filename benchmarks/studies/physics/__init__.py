"""Do Gymnasium's environments move as D4RL's did?"""
