package engine

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"pgedge/internal/pgtest"
)

// otherAuthority is the certificate of somebody who signed nothing here.
func otherAuthority(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{SerialNumber: big.NewInt(9), Subject: pkix.Name{CommonName: "somebody else"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "other.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// underAnotherName makes the server reachable at an address that its certificate does not name.
func underAnotherName(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial("tcp", server.Addr())
			if err != nil {
				c.Close()
				continue
			}
			go func() { io.Copy(s, c); s.Close() }()
			go func() { io.Copy(c, s); c.Close() }()
		}
	}()
	return ln.Addr().String()
}

// toServers starts a node without a control role in front of the given hosts.
func toServers(t *testing.T, hosts, options string, change func(*Config)) *node {
	t.Helper()
	u, err := ParseUpstream("postgres://" + hosts + "/" + pgtest.Database + options)
	if err != nil {
		t.Fatal(err)
	}
	return startNode(t, func(c *Config) {
		c.Databases = map[string]Database{"*": {Upstream: u}}
		if change != nil {
			change(c)
		}
	})
}

func TestWireSSLModesMeanWhatTheyMeanToLibpq(t *testing.T) {
	plain := pgtest.Start(t, pgtest.Options{}).Addr()
	own, wrongName := server.Addr(), underAnotherName(t)
	byName := net.JoinHostPort("localhost", strconv.Itoa(server.Port))
	ca, otherCA := "&sslrootcert="+server.CAFile, "&sslrootcert="+otherAuthority(t)
	const refused, encrypted, clear = "refused", "true", "false"
	for _, c := range []struct{ name, host, options, want string }{
		{"disable", own, "sslmode=disable", clear},
		{"prefer", own, "sslmode=prefer", encrypted},
		{"nothing said", own, "", encrypted},
		{"require", own, "sslmode=require", encrypted},
		{"verify-ca", own, "sslmode=verify-ca" + ca, encrypted},
		{"verify-full", own, "sslmode=verify-full" + ca, encrypted},
		{"verify-full by name", byName, "sslmode=verify-full" + ca, encrypted},
		{"require with another authority", own, "sslmode=require" + otherCA, refused},
		{"verify-ca with another authority", own, "sslmode=verify-ca" + otherCA, refused},
		{"verify-full with another authority", own, "sslmode=verify-full" + otherCA, refused},
		{"verify-full with the system's authorities", own, "sslmode=verify-full", refused},
		{"verify-ca of another name", wrongName, "sslmode=verify-ca" + ca, encrypted},
		{"verify-full of another name", wrongName, "sslmode=verify-full" + ca, refused},
		{"prefer without TLS at the server", plain, "sslmode=prefer", clear},
		{"require without TLS at the server", plain, "sslmode=require", refused},
		{"verify-full without TLS at the server", plain, "sslmode=verify-full" + ca, refused},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := toServers(t, c.host, "?"+c.options, nil)
			if c.want == refused {
				_, err := n.connect("alice")
				expectCode(t, err, "08001")
				return
			}
			var got bool
			conn := n.login("alice")
			if err := conn.QueryRow(bounded(t), "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").Scan(&got); err != nil || strconv.FormatBool(got) != c.want {
				t.Errorf("encrypted: %v, %v; want %s", got, err, c.want)
			}
		})
	}
}

func TestWireTLSToTheServerCarriesEverything(t *testing.T) {
	n := toServers(t, server.Addr(), "?sslmode=verify-full&sslrootcert="+server.CAFile, nil)
	for _, user := range []string{"alice", "md5user", "clearuser", "trustuser"} {
		conversation(t, n.login(user))
	}
	// Channel binding would bind to the TLS of the other leg, so it is not offered.
	c := dialPlain(t, "tcp", n.addr)
	c.send(startup("user", "alice", "database", pgtest.Database))
	if f := c.until('R'); string(f[0].body[4:]) != "SCRAM-SHA-256\x00\x00" {
		t.Errorf("the client is offered %q", f[0].body[4:])
	}
	batchOfMany(t, bounded(t), n.login("alice"))
	s := startSleeper(t, n.addr, "over TLS")
	cancelAt(t, n.addr, s.key) // whose own connection is encrypted too
	s.isCancelled()
	copyBothWays(t, n.login("alice"), "wire_copy_tls")
}

func TestWireHostileAnswersToSSLRequest(t *testing.T) {
	greeting := join(m('R', int32(0)), m('Z', byte('I')))
	for name, answer := range map[string]string{
		"an error":                          "ESFATAL\x00C0A000\x00Mnot here\x00\x00",
		"a line of text":                    "HTTP/1.1 400 Bad Request\r\n\r\n",
		"nothing":                           "",
		"no":                                "N",
		"yes, and a greeting in the clear":  "S" + string(greeting),
		"yes, and another yes":              "SS",
		"yes, and nothing":                  "S",
		"no, and a greeting in the clear":   "N" + string(greeting),
		"yes, and an alert of handshake":    "S\x15\x03\x03\x00\x02\x02\x28",
		"yes, and a record of a wrong size": "S\x16\x03\x03\xff\xff" + string(make([]byte, 1000)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newBareFake(t, func(_ *fake, c net.Conn) {
				readPacket(c)
				io.WriteString(c, answer)
			})
			n := toServers(t, f.addr, "?sslmode=require", nil)
			c := dialPlain(t, "tcp", n.addr)
			c.send(startup("user", "u", "database", "d"))
			if got := spell(c.rest()); got != unreachable {
				t.Errorf("got %s, want %s", got, unreachable)
			}
		})
	}
}

func TestWireTheNextHostServesWhenTheFirstIsDead(t *testing.T) {
	closed := newBareFake(t, func(*fake, net.Conn) {}).addr
	mute := newBareFake(t, func(_ *fake, c net.Conn) { io.Copy(io.Discard, c) }).addr
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refusing := ln.Addr().String()
	ln.Close()
	for name, first := range map[string]string{"refuses": refusing, "closes": closed, "says nothing": mute} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := toServers(t, first+","+server.Addr(), "?sslmode=require", func(c *Config) { c.Limits.LoginTimeout = 4 * time.Second })
			conversation(t, n.login("alice"))
		})
	}
	t.Run("all are dead", func(t *testing.T) {
		n := toServers(t, refusing+","+closed, "?sslmode=require", nil)
		_, err := n.connect("alice")
		expectCode(t, err, "08001")
	})
}
