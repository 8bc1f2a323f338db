package catalog

import (
	"fmt"
	"strings"
)

// nearest returns the candidate a person most likely meant, or "".
func nearest(typed string, candidates []string) string {
	best, bestDistance := "", 1+max(2, len(typed)/3)
	for _, c := range candidates {
		if strings.EqualFold(typed, c) {
			return c
		}
		if d := distance(strings.ToLower(typed), strings.ToLower(c), bestDistance); d < bestDistance {
			best, bestDistance = c, d
		}
	}
	return best
}

// didYouMean words a fix from the nearest candidate, or lists them all.
func didYouMean(typed string, candidates []string) string {
	if n := nearest(typed, candidates); n != "" {
		return fmt.Sprintf("did you mean %s?", n)
	}
	return "write one of: " + strings.Join(candidates, ", ")
}

// distance is Levenshtein's, given up at limit.
func distance(a, b string, limit int) int {
	if len(a) > 64 || len(b) > 64 || len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			diagonal, row[j] = row[j], min(row[j]+1, row[j-1]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
