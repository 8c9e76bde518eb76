package fleet

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// namespace is a network of one node: one link to clients and database, another to the NATS servers. The addresses are
// of the block for benchmarks between networks (RFC 2544), which no other network uses.
type namespace struct {
	name         string
	clientHost   string // the node's address for clients
	databaseHost string // this machine's address on that link
	natsHost     string // this machine's address on the other
	natsLink     string // this machine's end of it
	links        []string
}

func addNamespace(i int) (*namespace, error) {
	// Names of links have at most 15 bytes. The process id keeps two runs apart, the third byte their addresses.
	id := os.Getpid() % 100000
	octet := (id*8 + i) % 250
	ns := &namespace{name: fmt.Sprintf("pge%d-%d", id, i)}
	link := func(kind string, base int) (here, there string, err error) {
		outer, inner := fmt.Sprintf("%s%d%so", kind, id, fmt.Sprint(i)), fmt.Sprintf("%s%d%si", kind, id, fmt.Sprint(i))
		here, there = fmt.Sprintf("198.18.%d.%d", octet, base+1), fmt.Sprintf("198.18.%d.%d", octet, base+2)
		ns.links = append(ns.links, outer)
		for _, args := range [][]string{
			{"link", "add", outer, "type", "veth", "peer", "name", inner, "netns", ns.name},
			{"addr", "add", here + "/30", "dev", outer},
			{"link", "set", outer, "up"},
			{"-n", ns.name, "addr", "add", there + "/30", "dev", inner},
			{"-n", ns.name, "link", "set", inner, "up"},
		} {
			if err := ip(args...); err != nil {
				return "", "", err
			}
		}
		return here, there, nil
	}
	if err := ip("netns", "add", ns.name); err != nil {
		return nil, err
	}
	err := ip("-n", ns.name, "link", "set", "lo", "up")
	if err == nil {
		ns.databaseHost, ns.clientHost, err = link("c", 0)
	}
	if err == nil {
		ns.natsHost, _, err = link("n", 4)
	}
	if err != nil {
		return nil, errors.Join(err, ns.remove())
	}
	ns.natsLink = ns.links[1]
	return ns, nil
}

// setNATS takes the link to the NATS servers down at this machine's end, where the node does not see it.
func (ns *namespace) setNATS(up bool) error {
	if ns == nil {
		return errors.New("the node has no network of its own")
	}
	if up {
		return ip("link", "set", ns.natsLink, "up")
	}
	return ip("link", "set", ns.natsLink, "down")
}

func (ns *namespace) remove() error {
	for _, l := range ns.links {
		_ = ip("link", "del", l) // those that were not made are not there
	}
	return ip("netns", "del", ns.name)
}

func ip(args ...string) error {
	path, err := program("ip")
	if err != nil {
		return err
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("cannot run ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
