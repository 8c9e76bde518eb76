package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// inheritedSocket is a socket that systemd has opened for this process. The name is FileDescriptorName= of the socket
// unit, by default the unit's own.
type inheritedSocket struct {
	name string
	net.Listener
}

// inherited takes what systemd has passed. The descriptors are taken over once per process.
var inherited = sync.OnceValues(func() ([]inheritedSocket, error) {
	var sockets []inheritedSocket
	for _, f := range activation.Files(true) {
		ln, err := net.FileListener(f)
		f.Close() // FileListener has a descriptor of its own
		if err != nil {
			return nil, fmt.Errorf("the socket %s that systemd passed cannot be listened on: %w", f.Name(), err)
		}
		switch ln.(type) {
		case *net.TCPListener, *net.UnixListener:
		default:
			return nil, fmt.Errorf("the socket %s that systemd passed is neither TCP nor a unix stream", f.Name())
		}
		sockets = append(sockets, inheritedSocket{f.Name(), ln})
	}
	return sockets, nil
})

// divideListen gives each entry of listen that names systemd its sockets: systemd:NAME those of that name, systemd all
// that no other entry names. addrs are the other entries.
func divideListen(listen []string, sockets []inheritedSocket) (addrs []string, lns []net.Listener, err error) {
	wanted := make(map[string]bool)
	rest := false
	for _, l := range listen {
		switch name, named := strings.CutPrefix(l, "systemd:"); {
		case named:
			wanted[name] = false
		case l == "systemd":
			rest = true
		default:
			addrs = append(addrs, l)
		}
	}
	found, unnamed := 0, []string{}
	for _, s := range sockets {
		switch _, named := wanted[s.name]; {
		case named:
			wanted[s.name] = true
		case rest:
			found++
		default:
			unnamed = append(unnamed, s.name)
			continue
		}
		lns = append(lns, s.Listener)
	}
	for name, ok := range wanted {
		if !ok {
			return nil, nil, fmt.Errorf("listen: systemd passed no socket with the name %s", name)
		}
	}
	if rest && found == 0 {
		return nil, nil, fmt.Errorf("listen: systemd passed no socket: start pgedge through its socket unit (deploy/systemd)")
	}
	if len(unnamed) > 0 {
		// A socket that nobody serves is a client that waits for ever.
		return nil, nil, fmt.Errorf("listen: systemd passed sockets that are not listed: %s", strings.Join(unnamed, ", "))
	}
	return addrs, lns, nil
}

// listeners are the addresses to open and the listeners that are open already.
func (n *runningNode) listeners() ([]string, []net.Listener, error) {
	sockets, err := inherited()
	if err != nil {
		return nil, nil, err
	}
	return divideListen(n.cfg.Listen, sockets)
}

// notifier tells systemd how the process is doing, where NOTIFY_SOCKET says that it wants to know.
type notifier struct{ log *slog.Logger }

func (n notifier) say(lines ...string) {
	if _, err := daemon.SdNotify(false, strings.Join(lines, "\n")); err != nil {
		n.log.Warn("cannot notify systemd", "error", err)
	}
}

func (n notifier) ready(status string) { n.say(daemon.SdNotifyReady, "STATUS="+status) }
func (n notifier) status(text string)  { n.say("STATUS=" + text) }

// reloading precedes a reload; ready ends it. Type=notify-reload wants the time of the beginning.
func (n notifier) reloading() {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return
	}
	n.say(daemon.SdNotifyReloading, fmt.Sprintf("MONOTONIC_USEC=%d", now.Nano()/1000))
}

// stopping asks for the time that the stop may take, so that TimeoutStopSec need not be kept in step with timeouts.drain.
func (n notifier) stopping(limit time.Duration) {
	n.say(daemon.SdNotifyStopping, "STATUS=draining", fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", limit.Microseconds()))
}

// watchdog keeps WatchdogSec= content as long as alive says so, until ctx ends.
func (n notifier) watchdog(ctx context.Context, alive func(context.Context) bool) {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil || every <= 0 {
		return
	}
	tick := time.NewTicker(every / 3)
	defer tick.Stop()
	for {
		look, cancel := context.WithTimeout(ctx, every/3)
		if alive(look) {
			n.say(daemon.SdNotifyWatchdog)
		}
		cancel()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
