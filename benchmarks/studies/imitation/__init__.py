"""What can go wrong when a policy imitates, and what helps?"""
