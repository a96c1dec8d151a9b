package policy

import "strings"

// nearest returns the candidate that word was probably meant to be, or "" when
// none is close. Case does not count; a swap of two neighbours counts once.
func nearest(word string, candidates []string) string {
	const longest = 64 // nobody mistypes that much, and the cost is the product of the lengths
	if word == "" || len(word) > longest {
		return ""
	}
	word = strings.ToLower(word)
	best, bestDistance := "", max(1, len(word)/2)+1
	for _, candidate := range candidates {
		if d := editDistance(word, strings.ToLower(candidate)); d < bestDistance {
			best, bestDistance = candidate, d
		}
	}
	return best
}

// editDistance counts the insertions, deletions, replacements and swaps of
// neighbours that turn a into b (optimal string alignment, in bytes).
func editDistance(a, b string) int {
	before, previous, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range previous {
		previous[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(previous[j]+1, row[j-1]+1, previous[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, previous, row = previous, row, before
	}
	return previous[len(b)]
}
