"""How is a dataset rebuilt, and how near is it to D4RL's?"""
