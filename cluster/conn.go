package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	connectTimeout = 2 * time.Second
	reconnectWait  = 100 * time.Millisecond
	// pingInterval and maxPingsOut find a half-open connection within three seconds instead of four minutes.
	pingInterval = time.Second
	maxPingsOut  = 2
)

// connHooks is what a connection tells its owner. The functions run on the connection's callback goroutine and must
// not block. Each of them means that messages may have been missed.
type connHooks struct {
	disconnected func(error)
	reconnected  func()
	// asyncError reports, among others, a slow consumer: messages were dropped, and only this call says so.
	asyncError func(*nats.Subscription, error)
}

// connOptions are the settings that make a NATS connection fit for revocations: it never gives up, notices a dead
// peer in seconds, and buffers nothing while it is down, because a publish that seems to work and is sent minutes
// later is a lie.
func connOptions(name string, hooks connHooks) []nats.Option {
	return []nats.Option{
		nats.Name(name),
		nats.Timeout(connectTimeout),
		nats.PingInterval(pingInterval),
		nats.MaxPingsOutstanding(maxPingsOut),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(reconnectWait),
		nats.ReconnectJitter(reconnectWait, reconnectWait),
		nats.ReconnectBufSize(-1),
		nats.IgnoreAuthErrorAbort(),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { hooks.disconnected(err) }),
		nats.ReconnectHandler(func(*nats.Conn) { hooks.reconnected() }),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) { hooks.asyncError(sub, err) }),
	}
}

// connectPatiently connects to an external NATS and waits until it answers or ctx ends. A node may well be started
// before its NATS, so that only ctx limits the attempts; the last reason is in the error.
func connectPatiently(ctx context.Context, urls string, opts []nats.Option, log *slog.Logger) (*nats.Conn, error) {
	var last error
	for {
		nc, err := nats.Connect(urls, opts...)
		if err == nil {
			return nc, nil
		}
		if last == nil || last.Error() != err.Error() {
			log.Warn("cannot connect to NATS yet", "server", redactURLs(urls), "error", err)
		}
		last = err
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("cannot connect to NATS at %s: %w", redactURLs(urls), errors.Join(last, context.Cause(ctx)))
		case <-time.After(reconnectWait):
		}
	}
}

// redactURLs lists the hosts of a URL list without their secrets, for logs and errors.
func redactURLs(list string) string {
	var hosts []string
	for s := range strings.SplitSeq(list, ",") {
		u, err := url.Parse(strings.TrimSpace(s))
		if err != nil || u.Host == "" {
			hosts = append(hosts, "?")
			continue
		}
		hosts = append(hosts, u.Host)
	}
	return strings.Join(hosts, ",")
}
