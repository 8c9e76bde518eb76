package pgserver

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// FreePorts finds n different ports of host that programs can be told of before they listen. They are below those that
// Linux gives to outgoing connections by default (32768 to 60999), one of which could take a port in between.
func FreePorts(host string, n int) ([]int, error) {
	var ports []int
	for tries := 0; len(ports) < n; tries++ {
		port := 10_000 + rand.IntN(22_000)
		l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err != nil {
			if tries > 1000 {
				return nil, fmt.Errorf("cannot find a free port: %w", err)
			}
			continue
		}
		defer l.Close() // all at once, so that they differ
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
