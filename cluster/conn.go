package cluster

import (
	"context"
	"errors"
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

// patiently tries something until it works, cannot ever work, or ctx ends. A node may well be started before its NATS,
// so that only ctx limits the attempts; the last reason is in the error. say hears each reason once.
func patiently(ctx context.Context, wait time.Duration, say func(why error), hopeless func(error) bool, try func() error) error {
	var last error
	for {
		err := try()
		if err == nil || hopeless(err) {
			return err
		}
		if ctx.Err() != nil {
			return errors.Join(err, context.Cause(ctx))
		}
		if last == nil || last.Error() != err.Error() {
			say(err)
		}
		last = err
		select {
		case <-ctx.Done():
			return errors.Join(last, context.Cause(ctx))
		case <-time.After(wait):
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

// natsHosts is a URL list without its secrets, but with its schemes, for a command that a person is to type.
func natsHosts(list string) string {
	var out []string
	for s := range strings.SplitSeq(list, ",") {
		if u, err := url.Parse(strings.TrimSpace(s)); err == nil && u.Host != "" {
			out = append(out, u.Scheme+"://"+u.Host)
		}
	}
	return strings.Join(out, ",")
}
