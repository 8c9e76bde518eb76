package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nkeys"

	"pgedge/revoke"
)

// authority signs certificates for 127.0.0.1, for servers and clients alike, in files of a directory.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{dir: t.TempDir(), key: key, cert: &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}}
	der, err := x509.CreateCertificate(rand.Reader, a.cert, a.cert, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, a.ca(), "CERTIFICATE", der)
	return a
}

func (a *authority) ca() string { return filepath.Join(a.dir, "ca.pem") }

// issue returns the files of a certificate and its key.
func (a *authority) issue(t testing.TB, name string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(a.dir, name+".crt"), filepath.Join(a.dir, name+".key")
	writePEM(t, certFile, "CERTIFICATE", der)
	writePEM(t, keyFile, "PRIVATE KEY", keyDER)
	return certFile, keyFile
}

func writePEM(t testing.TB, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A server that asks for a certificate and knows its user by an nkey: both have to reach node and command line.
func TestNodeAndClientReachAServerThatAsksForCertificateAndNkey(t *testing.T) {
	a := newAuthority(t)
	serverCert, serverKey := a.issue(t, "server")
	cert, key := a.issue(t, "client")
	user, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, err := user.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := user.Seed()
	if err != nil {
		t.Fatal(err)
	}
	seedFile := filepath.Join(t.TempDir(), "user.nk")
	write(t, seedFile, string(seed)+"\n")
	s := natsServer(t, jetStreamConf(t)+fmt.Sprintf("tls { cert_file: %q, key_file: %q, ca_file: %q, verify: true }\nauthorization { users: [ { nkey: %s } ] }\n",
		serverCert, serverKey, a.ca(), public))
	url := "tls://" + strings.TrimPrefix(strings.TrimPrefix(s.ClientURL(), "nats://"), "tls://")
	good := Credentials{CredsFile: seedFile, CAFile: a.ca(), CertFile: cert, KeyFile: key}
	initStreams(t, DialOptions{URL: url, Credentials: good}, 1)
	cfg := outsideConfig(t, "a", url, 1)
	cfg.Credentials = good
	eng := newFakeEngine()
	startNode(t, cfg, eng)
	c := dial(t, DialOptions{URL: url, Credentials: good})
	if _, err := c.Publish(testContext(t), revoke.VerbRevoke, scopeOf("alice"), PublishOptions{}); err != nil {
		t.Fatal(err)
	}
	eng.wait(t, "alice", settledOrder("alice"))

	stranger := newAuthority(t)
	strangerCert, strangerKey := stranger.issue(t, "client")
	for name, tc := range map[string]struct {
		change func(*Credentials)
		want   string
	}{
		"without an authority":     {func(c *Credentials) { c.CAFile = "" }, "certificate signed by unknown authority"},
		"without a certificate":    {func(c *Credentials) { c.CertFile, c.KeyFile = "", "" }, "tls"},
		"a stranger's certificate": {func(c *Credentials) { c.CertFile, c.KeyFile = strangerCert, strangerKey }, "tls"},
		"without an nkey":          {func(c *Credentials) { c.CredsFile = "" }, "Authorization Violation"},
		"half a pair":              {func(c *Credentials) { c.KeyFile = "" }, "come together"},
		"a key that is no key":     {func(c *Credentials) { c.KeyFile = seedFile }, "cannot use certificate"},
		"an authority that is not": {func(c *Credentials) { c.CAFile = seedFile }, "holds no certificate"},
		"credentials that are not": {func(c *Credentials) { c.CredsFile = cert }, "neither a user JWT nor an nkey seed"},
		"credentials not there":    {func(c *Credentials) { c.CredsFile = "/nowhere/x.creds" }, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			bad := good
			tc.change(&bad)
			_, err := Dial(testContext(t), DialOptions{URL: url, Credentials: bad})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestRoutesOverTLSTakeNobodyWithoutACertificate(t *testing.T) {
	a := newAuthority(t)
	configs := fleetConfigs(t, 3)
	var servers []*embeddedServer
	for i := range configs {
		configs[i].Replicas = 1
		r := &configs[i].Routes
		r.CAFile = a.ca()
		r.CertFile, r.KeyFile = a.issue(t, configs[i].Node)
		if i == 2 {
			// The right secret, and a certificate that this fleet's authority has not signed.
			stranger := newAuthority(t)
			r.CertFile, r.KeyFile = stranger.issue(t, configs[i].Node)
		}
		if problems := r.validate(); len(problems) > 0 {
			t.Fatal(problems)
		}
		s, err := startEmbeddedWithToken(configs[i].withDefaults(), t.TempDir(), newToken())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.stop)
		servers = append(servers, s)
	}
	until(t, "two servers find each other", func() bool { return servers[0].srv.NumRoutes() > 0 && servers[1].srv.NumRoutes() > 0 })
	if n := servers[2].srv.NumRoutes(); n != 0 {
		t.Errorf("the stranger has %d routes", n)
	}
}
