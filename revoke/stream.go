package revoke

import "strings"

// SameStream says whether two stream identities, as heartbeats carry them, are those of one journal: name and time of
// creation are the same. The JetStream domain between them is a matter of where one is connected, and counts only when
// both sides know theirs.
func SameStream(a, b string) bool {
	nameA, domainA, createdA := splitStream(a)
	nameB, domainB, createdB := splitStream(b)
	return nameA == nameB && createdA == createdB && (domainA == domainB || domainA == "" || domainB == "")
}

// splitStream takes name@domain/created apart. A text without these parts is a name.
func splitStream(s string) (name, domain, created string) {
	name, rest, _ := strings.Cut(s, "@")
	if i := strings.LastIndexByte(rest, '/'); i >= 0 {
		return name, rest[:i], rest[i+1:]
	}
	return name, rest, ""
}
