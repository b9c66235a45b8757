"""Does a large, worse dataset help POR's guide?"""
