package fleet

import (
	"context"
	"fmt"
	"net"
	"time"
)

// poll asks until it holds; for states that nothing announces.
func poll(ctx context.Context, what string, holds func() (bool, error)) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := holds()
		if err != nil {
			return fmt.Errorf("cannot wait for %s: %w", what, err)
		}
		if ok {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waited in vain for %s: %w", what, ctx.Err())
		}
	}
}

func waitListening(ctx context.Context, p *Process, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return poll(ctx, p.Name+" to listen on "+addr, func() (bool, error) {
		if !p.Running() {
			return false, fmt.Errorf("%s has ended: %v\n%s", p.Name, p.err, p.Log())
		}
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err != nil {
			return false, nil
		}
		return true, c.Close()
	})
}
