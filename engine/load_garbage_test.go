package engine

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"pgedge/internal/pgtest"
)

// loadGarbage makes startup packets that no client should send.
func loadGarbage(i int, pick func(int) int) []byte {
	size := func(n uint32, body []byte) []byte { return append(binary.BigEndian.AppendUint32(nil, n), body...) }
	random := make([]byte, 1+pick(600))
	for k := range random {
		random[k] = byte(pick(256))
	}
	good := loadStartup("ann", pgtest.Database)
	switch i % 10 {
	case 0:
		return random
	case 1:
		return size(uint32(pick(1<<31)), random) // a length that means nothing
	case 2:
		return size(0xffffffff, random)
	case 3:
		return size(uint32(pick(9)), random) // shorter than itself
	case 4:
		return good[:pick(len(good))] // truncated
	case 5:
		return size(10000, random) // the greatest length, and not all of it
	case 6:
		broken := append([]byte(nil), good...)
		broken[pick(len(broken))] ^= byte(1 + pick(255))
		return broken
	case 7:
		return size(uint32(4+len(random)), random) // a packet of garbage, whole
	case 8:
		return append(size(8, []byte{4, 210, 22, 47}), random...) // SSLRequest, and garbage behind it
	default:
		return append([]byte{0x16, 3, 1}, random...) // TLS out of the blue
	}
}

func TestGarbageByTheThousandCostsNothingThatStays(t *testing.T) {
	const packets, workers = 3000, 16
	seed := loadSeed(t)
	fake := startLoadBackend(t)
	n := startNode(t, func(c *Config) {
		quiet(c)
		c.Databases = map[string]Database{"*": {Upstream: fake.upstream(t)}}
		c.Limits.LoginTimeout = 20 * time.Second
	})
	baseline := n.baseline()
	var next atomic.Int64
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			rng := loadRand(seed, uint64(w))
			for i := next.Add(1); i <= packets; i = next.Add(1) {
				conn, err := net.DialTimeout("tcp", n.addr, patience)
				if err != nil {
					t.Error(err)
					return
				}
				conn.SetDeadline(time.Now().Add(patience))
				conn.Write(loadGarbage(int(i), rng.IntN))
				if rng.IntN(2) == 0 {
					conn.(*net.TCPConn).CloseWrite() // else the node closes first, or the close below cuts it off
					if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, syscall.ECONNRESET) {
						t.Errorf("packet %d: the node did not close: %v", i, err)
					}
				}
				conn.Close()
			}
		})
	}
	wg.Wait()
	n.settledAt(baseline)
	loadCheckHeap(t, "after the garbage")
	n.noBugs()
	c, err := loadDial(n.addr, "ann", "", pgtest.Database)
	if err != nil {
		t.Fatal(err)
	}
	c.terminate()
}
