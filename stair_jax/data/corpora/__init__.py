"""Data sets that recipes draw from, a file each; `data.corpus` finds every `CORPUS` in here."""
