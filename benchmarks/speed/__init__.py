"""How fast are the updates, and how fast those of other people's code?"""
