package config

import "strings"

// find returns the key with this path, or says that the path is a section above some key.
func find[T any](keys []key[T], path string) (k *key[T], section bool) {
	for i := range keys {
		if keys[i].path == path {
			return &keys[i], false
		}
		if strings.HasPrefix(keys[i].path, path+".") {
			section = true
		}
	}
	return nil, section
}

func keyPaths[T any](keys []key[T]) []string {
	out := make([]string, len(keys))
	for i, k := range keys {
		out[i] = k.path
	}
	return out
}

// unknownKey reports a key that is in no table, with the nearest one that is.
func (l *loader) unknownKey(at place, full, rel string, known []string) {
	if best := nearest(rel, known); best != "" {
		l.errorf(at, full, "unknown key; did you mean %s?", best)
		return
	}
	l.errorf(at, full, "unknown key")
}

// nearest returns the last name of the known path that is most like path: in the same section and at most two
// edits away, or with the same last name in another section.
func nearest(path string, known []string) string {
	section, name := cutLast(path)
	best, bestDistance := "", 3
	elsewhere := ""
	for _, k := range known {
		for p := k; p != ""; p, _ = cutLast(p) {
			s, n := cutLast(p)
			if s == section {
				if d := editDistance(n, name); d < bestDistance {
					best, bestDistance = n, d
				}
			} else if n == name {
				elsewhere = p
			}
		}
	}
	if best != "" {
		return best
	}
	return elsewhere
}

func cutLast(path string) (section, name string) {
	if i := strings.LastIndexByte(path, '.'); i >= 0 {
		return path[:i], path[i+1:]
	}
	return "", path
}

// editDistance counts insertions, deletions and replacements. Names longer than 64 bytes are like nothing.
func editDistance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			above := row[j]
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(above+1, row[j-1]+1, diagonal+cost)
			diagonal = above
		}
	}
	return row[len(b)]
}
