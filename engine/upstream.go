package engine

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
)

// HostPort is one server of an upstream. A Host that begins with "/" is the directory of a unix socket.
type HostPort struct {
	Host string
	Port int
}

// Network and address as net.Dial wants them.
func (h HostPort) dialArgs() (network, address string) {
	if strings.HasPrefix(h.Host, "/") {
		return "unix", h.Host + "/.s.PGSQL." + strconv.Itoa(h.Port)
	}
	return "tcp", net.JoinHostPort(h.Host, strconv.Itoa(h.Port))
}

func (h HostPort) String() string {
	_, address := h.dialArgs()
	return address
}

// Credential is a login of pgedge's own.
type Credential struct {
	User     string
	Password string
	Database string // to connect to; "" means "postgres"
}

// Upstream is where a database entry leads. PG* variables, .pgpass and service files never apply to it.
type Upstream struct {
	Hosts       []HostPort  // tried in order
	Database    string      // name of the database on the server; "" means the name the client asked for
	SSLMode     string      // disable | prefer | require | verify-ca | verify-full, as in libpq; "" means prefer
	SSLRootCert string      // PEM file; "" or "system" means the system's roots
	Control     *Credential // role that kills and verifies; nil: kills cannot be verified

	roots *x509.CertPool // of SSLRootCert, read by load
}

// load reads what tlsConfig needs, once.
func (u *Upstream) load() (err error) {
	u.roots, err = u.rootPool()
	return err
}

var sslModes = map[string]bool{"disable": true, "prefer": true, "require": true, "verify-ca": true, "verify-full": true}

// Validate reports all problems at once.
func (u *Upstream) Validate() error {
	var errs []error
	if len(u.Hosts) == 0 {
		errs = append(errs, errors.New("upstream: no host"))
	}
	for _, h := range u.Hosts {
		if h.Host == "" || h.Port < 1 || h.Port > 65535 {
			errs = append(errs, fmt.Errorf("upstream: host %q port %d is not an address", h.Host, h.Port))
		}
	}
	if u.SSLMode != "" && !sslModes[u.SSLMode] {
		errs = append(errs, fmt.Errorf("upstream: sslmode %q is not one of disable, prefer, require, verify-ca, verify-full", u.SSLMode))
	}
	if _, err := u.rootPool(); err != nil {
		errs = append(errs, err)
	}
	if u.SSLRootCert == "system" && u.SSLMode != "" && u.SSLMode != "verify-full" {
		errs = append(errs, fmt.Errorf("upstream: sslrootcert=system is weak with sslmode=%s: any public certificate would do; use verify-full", u.SSLMode))
	}
	if u.Control != nil && u.Control.User == "" {
		errs = append(errs, errors.New("upstream: control role without a user name"))
	}
	return errors.Join(errs...)
}

// ParseUpstream reads postgres://[user[:password]@]host[:port][,host[:port]...][/database][?sslmode=&sslrootcert=&host=].
// User and password, if given, become the control role. Several hosts are tried in order.
func ParseUpstream(raw string) (Upstream, error) {
	var u Upstream
	rest, ok := strings.CutPrefix(raw, "postgres://")
	if !ok {
		if rest, ok = strings.CutPrefix(raw, "postgresql://"); !ok {
			return u, errors.New("upstream: the URL must begin with postgres://")
		}
	}
	rest, query, _ := strings.Cut(rest, "?")
	authority, path, _ := strings.Cut(rest, "/")
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		control, err := parseUserinfo(authority[:i])
		if err != nil {
			return u, err
		}
		u.Control, authority = control, authority[i+1:]
	}
	db, err := url.PathUnescape(path)
	if err != nil {
		return u, fmt.Errorf("upstream: cannot read the database name: %w", err)
	}
	u.Database = db
	values, err := url.ParseQuery(query)
	if err != nil {
		return u, fmt.Errorf("upstream: cannot read the options: %w", err)
	}
	port := 5432
	for name := range values {
		value := values.Get(name)
		switch name {
		case "sslmode":
			u.SSLMode = value
		case "sslrootcert":
			u.SSLRootCert = value
		case "host":
			if authority != "" {
				return u, errors.New("upstream: the host is given twice")
			}
		case "port":
			if port, err = strconv.Atoi(value); err != nil {
				return u, fmt.Errorf("upstream: port %q is not a number", value)
			}
		case "target_session_attrs":
			if value != "any" {
				return u, fmt.Errorf("upstream: target_session_attrs=%s: not supported in this version", value)
			}
		default:
			return u, fmt.Errorf("upstream: option %q is not known", name)
		}
	}
	if host := values.Get("host"); host != "" {
		authority = host
	}
	if u.Hosts, err = parseHosts(authority, port); err != nil {
		return u, err
	}
	return u, u.Validate()
}

func parseUserinfo(s string) (*Credential, error) {
	user, password, _ := strings.Cut(s, ":")
	user, err1 := url.PathUnescape(user)
	password, err2 := url.PathUnescape(password)
	if err := errors.Join(err1, err2); err != nil {
		return nil, errors.New("upstream: user or password is not percent-encoded correctly")
	}
	if user == "" {
		return nil, errors.New("upstream: user name is empty")
	}
	return &Credential{User: user, Password: password}, nil
}

func parseHosts(authority string, defaultPort int) ([]HostPort, error) {
	var hosts []HostPort
	for part := range strings.SplitSeq(authority, ",") {
		if part == "" {
			return nil, errors.New("upstream: no host")
		}
		unescaped, err := url.PathUnescape(part)
		if err != nil {
			return nil, fmt.Errorf("upstream: cannot read host %q: %w", part, err)
		}
		h := HostPort{Host: unescaped, Port: defaultPort}
		if !strings.HasPrefix(unescaped, "/") {
			if host, port, err := net.SplitHostPort(unescaped); err == nil {
				n, err := strconv.Atoi(port)
				if err != nil {
					return nil, fmt.Errorf("upstream: port %q is not a number", port)
				}
				h = HostPort{Host: host, Port: n}
			} else {
				h.Host = strings.Trim(unescaped, "[]")
			}
		}
		hosts = append(hosts, h)
	}
	return hosts, nil
}

func (u *Upstream) sslMode() string {
	if u.SSLMode == "" {
		return "prefer"
	}
	return u.SSLMode
}

func (u *Upstream) rootPool() (*x509.CertPool, error) {
	if u.SSLRootCert == "" || u.SSLRootCert == "system" {
		return nil, nil
	}
	pem, err := os.ReadFile(u.SSLRootCert)
	if err != nil {
		return nil, fmt.Errorf("upstream: cannot read sslrootcert: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("upstream: sslrootcert %s holds no certificate", u.SSLRootCert)
	}
	return pool, nil
}

// tlsConfig returns what a connection to host needs, nil for none. As in libpq, require with a root certificate
// verifies the chain, and prefer and require without one verify nothing.
func (u *Upstream) tlsConfig(host HostPort) *tls.Config {
	mode := u.sslMode()
	if mode == "disable" || strings.HasPrefix(host.Host, "/") {
		return nil
	}
	pool := u.roots
	cfg := &tls.Config{ServerName: host.Host, RootCAs: pool, MinVersion: tls.VersionTLS12}
	switch {
	case mode == "verify-full":
	case mode == "verify-ca" || mode == "require" && u.SSLRootCert != "":
		cfg.InsecureSkipVerify = true // the name is not checked; the chain is, below
		cfg.VerifyConnection = func(cs tls.ConnectionState) error {
			opts := x509.VerifyOptions{Roots: pool, Intermediates: x509.NewCertPool()}
			for _, cert := range cs.PeerCertificates[1:] {
				opts.Intermediates.AddCert(cert)
			}
			_, err := cs.PeerCertificates[0].Verify(opts)
			return err
		}
	default:
		cfg.InsecureSkipVerify = true
	}
	return cfg
}
