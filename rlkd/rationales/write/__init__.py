"""Write rationales with a teacher."""
