"""What does POR's guide say where its data are silent, and what does its bound say?"""
