"""The colors of every figure and page: those of Okabe and Ito, which all readers can tell apart."""

BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK, GRAY = "#E69F00", "#56B4E9", "#000000", "#777777"

HUES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE)
"""The five that stand out on white and on black."""
