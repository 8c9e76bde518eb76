package pgserver

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// given are the ports that this process has been told of already: nobody listens on some of them yet.
var given struct {
	sync.Mutex
	ports map[int]struct{}
}

// maxGiven is when ports may come again: a process that needs so many has long ended what used the first.
const maxGiven = 10_000

// FreePorts finds n different ports of host that programs can be told of before they listen. They are below those that
// Linux gives to outgoing connections by default (32768 to 60999), one of which could take a port in between. No port is
// given twice.
func FreePorts(host string, n int) ([]int, error) {
	given.Lock()
	defer given.Unlock()
	if given.ports == nil || len(given.ports) > maxGiven {
		given.ports = make(map[int]struct{})
	}
	var ports []int
	for tries := 0; len(ports) < n; tries++ {
		port := 10_000 + rand.IntN(22_000)
		if _, ok := given.ports[port]; ok {
			continue
		}
		l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err != nil {
			if tries > 1000 {
				return nil, fmt.Errorf("cannot find a free port: %w", err)
			}
			continue
		}
		l.Close()
		given.ports[port] = struct{}{}
		ports = append(ports, port)
	}
	return ports, nil
}

// FreePort is FreePorts for one.
func FreePort(host string) (int, error) {
	ports, err := FreePorts(host, 1)
	if err != nil {
		return 0, err
	}
	return ports[0], nil
}
