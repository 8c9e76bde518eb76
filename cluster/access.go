package cluster

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/nats-io/nats.go"
)

// maxCredentialBytes bounds a credentials or certificate file; a bundle of all public authorities has 250 KiB.
const maxCredentialBytes = 1 << 20

// Credentials say who this process is towards an external NATS, and whom it believes. The zero value is somebody
// without a name, over TLS only where the URL says tls:// or the server asks for it.
type Credentials struct {
	// CredsFile is a NATS credentials file (a JWT and its seed), or a file with an nkey seed alone.
	CredsFile string
	// User and Password, or Token, where they are not in the URL.
	User, Password, Token string
	// CAFile holds the certificates that the server's must come from. Default: the system's.
	CAFile string
	// CertFile and KeyFile are this process's own certificate. Both or neither.
	CertFile, KeyFile string
	// TLSFirst begins with TLS, before the server has said anything: for servers with handshake_first.
	TLSFirst bool
}

// options translates the credentials. What is wrong with a file is said here, before anything is connected.
func (c Credentials) options() ([]nats.Option, error) {
	var opts []nats.Option
	switch {
	case c.CredsFile != "":
		b, err := readCredentialFile(c.CredsFile)
		if err != nil {
			return nil, fmt.Errorf("cannot read credentials: %w", err)
		}
		opt := nats.UserCredentials(c.CredsFile)
		if !bytes.Contains(b, []byte("NATS USER JWT")) {
			if opt, err = nats.NkeyOptionFromSeed(c.CredsFile); err != nil {
				return nil, fmt.Errorf("cannot use credentials %s: it holds neither a user JWT nor an nkey seed", c.CredsFile)
			}
		}
		opts = append(opts, opt)
	case c.User != "":
		opts = append(opts, nats.UserInfo(c.User, c.Password))
	case c.Token != "":
		opts = append(opts, nats.Token(c.Token))
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		return nil, errors.New("a certificate and its key come together: one of the two is missing")
	}
	if c.CertFile != "" {
		if _, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile); err != nil {
			return nil, fmt.Errorf("cannot use certificate %s: %w", c.CertFile, err)
		}
		// Both files are read again at every connection, so that a renewed certificate needs no restart.
		opts = append(opts, nats.ClientCert(c.CertFile, c.KeyFile))
	}
	if c.CAFile != "" {
		if _, err := readAuthorities(c.CAFile); err != nil {
			return nil, err
		}
		opts = append(opts, nats.RootCAs(c.CAFile))
	}
	if c.TLSFirst {
		opts = append(opts, nats.TLSHandshakeFirst())
	}
	return opts, nil
}

func readAuthorities(path string) (*x509.CertPool, error) {
	b, err := readCredentialFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read certificate authorities: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("cannot use %s: it holds no certificate in PEM form", path)
	}
	return pool, nil
}

func readCredentialFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxCredentialBytes+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxCredentialBytes {
		return nil, fmt.Errorf("%s is longer than %d bytes", path, maxCredentialBytes)
	}
	return b, nil
}

// Each permission set has an inbox of its own, so that nobody reads the answers that are for somebody else: an
// observer could otherwise collect what an operator is told, and a node another node's journal requests.
const (
	inboxOperator = "_INBOX_pgedge_operator"
	inboxObserver = "_INBOX_pgedge_observer"
	inboxAnybody  = "_INBOX"
)

func inboxOfNode(id string) string { return "_INBOX_pgedge_node." + id }

// commandLineInboxes are tried in this order by a command that was not told its inbox. The first one that it may use
// says which permission set its user has.
var commandLineInboxes = []string{inboxOperator, inboxObserver, inboxAnybody}

// connectWithInbox connects with the first inbox prefix that the user may subscribe to. The permission error of an
// earlier try is not reported; when none is allowed the first one is.
func connectWithInbox(prefixes []string, connect func(prefix string) (*nats.Conn, error)) (*nats.Conn, error) {
	var first error
	for _, prefix := range prefixes {
		nc, err := connect(prefix)
		if err != nil {
			return nil, err
		}
		err = mayReceive(nc)
		if err == nil {
			return nc, nil
		}
		nc.Close()
		if !errors.Is(err, nats.ErrPermissionViolation) {
			return nil, err
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

// mayReceive proves that answers can arrive. The server speaks in order: a refusal comes before the flush's answer.
func mayReceive(nc *nats.Conn) error {
	sub, err := nc.SubscribeSync(nc.NewInbox())
	if err != nil {
		return fmt.Errorf("cannot subscribe to an inbox: %w", err)
	}
	defer sub.Unsubscribe()
	if err := nc.FlushTimeout(connectTimeout); err != nil {
		return fmt.Errorf("cannot subscribe to an inbox: %w", err)
	}
	if err := nc.LastError(); errors.Is(err, nats.ErrPermissionViolation) {
		return err
	}
	return nil
}
