package config

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
)

const (
	maxRoutePeers = 64
	// minRouteSecretBytes keeps the secret out of reach of guessing.
	minRouteSecretBytes = 16
)

// parseRoute takes host:port with both parts: other nodes have to know it.
func parseRoute(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" {
		return "", fmt.Errorf("%q is not an address of the form host:port", s)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return "", fmt.Errorf("%q: the port must be a number from 1 to 65535, since the other nodes have to know it", s)
	}
	return s, nil
}

func parsePeers(vs []string) ([]string, error) {
	if len(vs) > maxRoutePeers {
		return nil, fmt.Errorf("lists %d nodes, more than %d", len(vs), maxRoutePeers)
	}
	var errs []error
	for _, v := range vs {
		if _, err := parseRoute(v); err != nil {
			errs = append(errs, err)
		}
	}
	return vs, errors.Join(errs...)
}

// fillInCluster reads the secret of the routes, and looks at the files that hold keys.
func (l *loader) fillInCluster() {
	c := &l.cfg.Cluster
	if c.Routes.secretFile != "" {
		const key = "cluster.routes.secret_file"
		secret, warning, err := readSecretFile(l.beside(c.Routes.secretFile))
		if err != nil {
			l.fail(l.placed[key], key, err)
		}
		if warning != "" {
			l.warnf(l.placed[key], key, "%s", warning)
		}
		if err == nil && len(secret) < minRouteSecretBytes {
			l.errorf(l.placed[key], key, "the secret is shorter than %d bytes: openssl rand -hex 32 makes a good one", minRouteSecretBytes)
		}
		c.Routes.Secret = secret
	}
	for _, f := range []struct {
		key    string
		path   *string
		secret bool
	}{
		{"cluster.creds_file", &c.CredsFile, true},
		{"cluster.tls.ca_file", &c.TLS.CAFile, false},
		{"cluster.tls.cert_file", &c.TLS.CertFile, false},
		{"cluster.tls.key_file", &c.TLS.KeyFile, true},
		{"cluster.routes.ca_file", &c.Routes.TLS.CAFile, false},
		{"cluster.routes.cert_file", &c.Routes.TLS.CertFile, false},
		{"cluster.routes.key_file", &c.Routes.TLS.KeyFile, true},
	} {
		if *f.path == "" {
			continue
		}
		*f.path = l.beside(*f.path)
		warning, err := checkFile(*f.path, f.secret)
		if err != nil {
			l.fail(l.placed[f.key], f.key, err)
		}
		if warning != "" {
			l.warnf(l.placed[f.key], f.key, "%s", warning)
		}
	}
}

// checkCluster looks at the keys of the cluster against each other.
func (l *loader) checkCluster() {
	c := l.cfg.Cluster
	l.checkPair("cluster.tls", c.TLS)
	l.checkPair("cluster.routes", c.Routes.TLS)
	if !c.Embedded() {
		l.checkOutside(c)
		return
	}
	if slices.ContainsFunc(l.report.Errors, func(p Problem) bool { return p.Key == "cluster.nats" }) {
		return // its URLs could not be read: what is said of an embedded server would be wrong
	}
	for _, key := range []string{"cluster.creds_file", "cluster.tls.ca_file", "cluster.tls.cert_file"} {
		if l.isSet(key) {
			l.errorf(l.placed[key], key, "has no meaning with an embedded NATS server: it is for cluster.nats with URLs")
		}
	}
	if !c.Routes.Enabled() {
		if c.Replicas > 1 {
			l.errorf(l.placed["cluster.replicas"], "cluster.replicas", "%d: an embedded NATS server without cluster.routes holds one copy", c.Replicas)
		}
		for _, key := range []string{"cluster.routes.secret_file", "cluster.routes.cert_file"} {
			if l.isSet(key) {
				l.errorf(l.placed[key], key, "there is no cluster.routes.listen and no cluster.routes.peers")
			}
		}
		return
	}
	l.checkRoutes(c)
}

func (l *loader) checkOutside(c Cluster) {
	for _, key := range []string{"cluster.routes.listen", "cluster.routes.peers"} {
		if l.isSet(key) && c.Routes.Enabled() {
			l.errorf(l.placed[key], key, "has no meaning with cluster.nats set to a URL: routes are for embedded servers")
		}
	}
	if l.isSet("cluster.listen") {
		l.warnf(l.placed["cluster.listen"], "cluster.listen", "is the listener of the embedded server and has no effect with cluster.nats set to a URL")
	}
}

func (l *loader) checkRoutes(c Cluster) {
	r := c.Routes
	at := l.placed["cluster.routes.listen"]
	if r.Listen == "" {
		l.errorf(l.placed["cluster.routes.peers"], "cluster.routes.listen", "is missing: the other nodes have to reach this one")
		return
	}
	if len(r.Peers) == 0 {
		l.errorf(at, "cluster.routes.peers", "is missing: name the other nodes")
		return
	}
	local := loopback(r.Listen)
	for _, p := range r.Peers {
		local = local && loopback(p)
	}
	switch {
	case local:
	case r.secretFile == "":
		l.errorf(at, "cluster.routes.secret_file", "is missing: without it whoever reaches %s could join the journal", r.Listen)
	case r.TLS.CertFile == "":
		l.warnf(at, "cluster.routes", "the secret and the journal cross the network in clear: add ca_file, cert_file and key_file, or use a network of its own")
	}
	if c.Replicas == 1 {
		l.warnf(at, "cluster.replicas", "is 1: the journal may live on one node only, and is lost with its disk; three nodes allow 3")
	}
}

// checkPair refuses half a pair of files.
func (l *loader) checkPair(section string, p KeyPair) {
	if (p.CertFile == "") != (p.KeyFile == "") {
		at, ok := l.placed[section+".cert_file"]
		if !ok {
			at = l.placed[section+".key_file"]
		}
		l.errorf(at, section, "cert_file and key_file come together")
	}
	if section == "cluster.routes" && (p.CertFile == "") != (p.CAFile == "") {
		at, ok := l.placed[section+".ca_file"]
		if !ok {
			at = l.placed[section+".cert_file"]
		}
		l.errorf(at, section, "ca_file comes with cert_file and key_file: both sides of a route show a certificate")
	}
}

func (r Routes) protection() string {
	switch {
	case r.TLS.CertFile != "" && r.Secret != "":
		return "secret and TLS"
	case r.TLS.CertFile != "":
		return "TLS"
	case r.Secret != "":
		return "secret, in clear"
	}
	return "no secret, loopback only"
}
