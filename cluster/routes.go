package cluster

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"

	"github.com/nats-io/nats-server/v2/server"
)

// Routes make the embedded servers of several nodes one NATS cluster, which then carries the journal. Every node of it
// is as trusted as the journal itself: a server among servers is asked for no permission.
type Routes struct {
	// Listen is the host:port where the other nodes' servers connect. "" means no routes.
	Listen string
	// Peers are the others' host:port. The node itself may be among them, so that all nodes can have the same list.
	Peers []string
	// Secret is what servers prove themselves with. Required unless all addresses are loopback ones.
	Secret string
	// CAFile, CertFile and KeyFile encrypt the routes, and both sides have to show a certificate of that authority. All
	// three or none.
	CAFile, CertFile, KeyFile string
}

const (
	routeCluster = "pgedge"
	routeUser    = "pgedge"
	// minRouteSecretBytes keeps the secret out of reach of guessing.
	minRouteSecretBytes = 16
	maxRoutePeers       = 64
	// fleetDir holds the journal of a node with routes. A server that finds streams of a node alone when it joins a
	// cluster takes them for orphans and deletes them, so that the two never share a directory.
	fleetDir = "fleet"
)

func (r Routes) enabled() bool { return r.Listen != "" || len(r.Peers) > 0 }

func (r Routes) encrypted() bool { return r.CertFile != "" }

func (r Routes) validate() (problems []error) {
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if !r.enabled() {
		if r.Secret != "" || r.encrypted() {
			bad("cluster.routes: has a secret or a certificate, but no listen and no peers")
		}
		return problems
	}
	if r.Listen == "" {
		bad("cluster.routes.listen: is missing")
	} else if err := validateRouteAddress(r.Listen); err != nil {
		bad("cluster.routes.listen: %w", err)
	}
	if len(r.Peers) == 0 {
		bad("cluster.routes.peers: is empty: name the other nodes")
	}
	if len(r.Peers) > maxRoutePeers {
		bad("cluster.routes.peers: lists %d nodes, more than %d", len(r.Peers), maxRoutePeers)
	}
	local := isLoopback(r.Listen)
	for _, p := range r.Peers {
		if err := validateRouteAddress(p); err != nil {
			bad("cluster.routes.peers: %w", err)
		}
		local = local && isLoopback(p)
	}
	switch {
	case r.Secret == "" && !local:
		bad("cluster.routes.secret_file: is missing: without it whoever reaches %s could join the journal", r.Listen)
	case r.Secret != "" && len(r.Secret) < minRouteSecretBytes:
		bad("cluster.routes.secret_file: is shorter than %d bytes", minRouteSecretBytes)
	}
	if n := countSet(r.CAFile, r.CertFile, r.KeyFile); n != 0 && n != 3 {
		bad("cluster.routes: ca_file, cert_file and key_file come together")
	}
	return problems
}

func countSet(values ...string) (n int) {
	for _, v := range values {
		if v != "" {
			n++
		}
	}
	return n
}

func validateRouteAddress(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host == "" {
		return fmt.Errorf("%q is not host:port", addr)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return fmt.Errorf("%q: the port must be a number from 1 to 65535, since the other nodes have to know it", addr)
	}
	return nil
}

func isLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// apply puts the routes into the options of an embedded server.
func (r Routes) apply(opts *server.Options) error {
	host, port, err := net.SplitHostPort(r.Listen)
	if err != nil {
		return fmt.Errorf("cannot parse cluster.routes.listen: %w", err)
	}
	number, err := net.LookupPort("tcp", port)
	if err != nil {
		return fmt.Errorf("cannot parse cluster.routes.listen: %w", err)
	}
	// Clients of one node stay with it: another node's listener is a loopback address with a token of its own.
	opts.Cluster = server.ClusterOpts{Name: routeCluster, Host: host, Port: number, NoAdvertise: true, PoolSize: 1}
	var user *url.Userinfo
	if r.Secret != "" {
		opts.Cluster.Username, opts.Cluster.Password = routeUser, r.Secret
		user = url.UserPassword(routeUser, r.Secret)
	}
	for _, p := range r.Peers {
		opts.Routes = append(opts.Routes, &url.URL{Scheme: "nats-route", User: user, Host: p})
	}
	if r.encrypted() {
		if opts.Cluster.TLSConfig, err = r.tlsConfig(); err != nil {
			return err
		}
		opts.Cluster.TLSTimeout = connectTimeout.Seconds()
	}
	return nil
}

func (r Routes) tlsConfig() (*tls.Config, error) {
	pool, err := readAuthorities(r.CAFile)
	if err != nil {
		return nil, fmt.Errorf("cluster.routes: %w", err)
	}
	cert, err := tls.LoadX509KeyPair(r.CertFile, r.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("cluster.routes: cannot use certificate %s: %w", r.CertFile, err)
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{cert},
		RootCAs:      pool,
		ClientCAs:    pool,
		ClientAuth:   tls.RequireAndVerifyClientCert,
	}, nil
}

// journalHome is where the embedded server keeps its journal. It refuses to leave one of the other kind behind: the
// revocations in it would be forgotten without a word, and the revoked could log in again.
func journalHome(cfg Config, stateDir string) (string, error) {
	home, other := stateDir, filepath.Join(stateDir, fleetDir)
	was, is := "with cluster.routes", "without"
	if !cfg.alone() {
		home, other, was, is = other, home, "without cluster.routes", "with them"
	}
	left := filepath.Join(other, journalDir, "$G", "streams", journalStream)
	switch _, err := os.Stat(left); {
	case err == nil:
		return "", fmt.Errorf("this state directory holds the journal of a node %s, and its revocations would be forgotten %s: "+
			"use another state directory, or remove %s once what is revoked there has been revoked again", was, is, filepath.Join(other, journalDir))
	case !errors.Is(err, os.ErrNotExist):
		return "", fmt.Errorf("cannot look for an earlier journal: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(home, journalDir), 0o700); err != nil {
		return "", fmt.Errorf("cannot create journal directory: %w", err)
	}
	return home, nil
}
