package cluster

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"pgedge/revoke"
)

func keyPair(t testing.TB, create func() (nkeys.KeyPair, error)) (pair nkeys.KeyPair, public string) {
	t.Helper()
	pair, err := create()
	if err != nil {
		t.Fatal(err)
	}
	if public, err = pair.PublicKey(); err != nil {
		t.Fatal(err)
	}
	return pair, public
}

// shippedPermissions reads one of the files of deploy/nats.
func shippedPermissions(t testing.TB, set, node string) *server.Permissions {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../deploy/nats", set+".conf"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "nats.conf")
	write(t, path, "authorization { users: [ { user: u, password: p, permissions: {\n"+strings.ReplaceAll(string(text), "NODE_ID", node)+"\n} } ] }\n")
	opts, err := server.ProcessConfigFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return opts.Users[0].Permissions
}

// One scoped signing key makes the users of all nodes: the server puts each one's name into the permissions.
func TestNodesAndOperatorsWithCredentialsFilesWorkAsTheirSigningKeysAllow(t *testing.T) {
	operator, _ := keyPair(t, nkeys.CreateOperator)
	account, accountID := keyPair(t, nkeys.CreateAccount)
	system, systemID := keyPair(t, nkeys.CreateAccount)
	_ = system
	claims := jwt.NewAccountClaims(accountID)
	claims.Name = "PGEDGE"
	claims.Limits.JetStreamLimits = jwt.JetStreamLimits{DiskStorage: jwt.NoLimit, MemoryStorage: jwt.NoLimit, Streams: jwt.NoLimit, Consumer: jwt.NoLimit, MaxAckPending: jwt.NoLimit}
	signers := map[string]nkeys.KeyPair{}
	for _, set := range []string{setNode, setOperator} {
		signer, id := keyPair(t, nkeys.CreateAccount)
		scope := jwt.NewUserScope()
		scope.Key, scope.Role = id, set
		p := shippedPermissions(t, set, "{{name()}}")
		scope.Template.Pub.Allow = p.Publish.Allow
		scope.Template.Sub.Allow = p.Subscribe.Allow
		claims.SigningKeys.AddScopedSigner(scope)
		signers[set] = signer
	}
	encode := func(c jwt.Claims, by nkeys.KeyPair) string {
		text, err := c.Encode(by)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	operatorID, err := operator.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	operatorClaims := jwt.NewOperatorClaims(operatorID)
	operatorClaims.SystemAccount = systemID
	s := natsServer(t, jetStreamConf(t)+fmt.Sprintf("operator: %s\nsystem_account: %s\nresolver: MEMORY\nresolver_preload: { %s: %s, %s: %s }\n",
		encode(operatorClaims, operator), systemID, accountID, encode(claims, operator), systemID, encode(jwt.NewAccountClaims(systemID), operator)))
	_ = account

	creds := func(set, name string) Credentials {
		user, id := keyPair(t, nkeys.CreateUser)
		c := jwt.NewUserClaims(id)
		c.Name, c.IssuerAccount = name, accountID
		c.SetScoped(true)
		seed, err := user.Seed()
		if err != nil {
			t.Fatal(err)
		}
		text, err := jwt.FormatUserConfig(encode(c, signers[set]), seed)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), name+".creds")
		write(t, path, string(text))
		return Credentials{CredsFile: path}
	}
	opts := DialOptions{URL: s.ClientURL(), Credentials: creds(setOperator, "anna")}
	initStreams(t, opts, 1)
	cfg := outsideConfig(t, "edge-a", s.ClientURL(), 1)
	cfg.Credentials = creds(setNode, "edge-a")
	eng := newFakeEngine()
	answering(eng, startNode(t, cfg, eng), 1, 0)
	c := dial(t, opts)
	pub, err := c.Publish(testContext(t), revoke.VerbRevoke, scopeOf("alice"), PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if verdict, _, err := c.Await(testContext(t), pub, nil); err != nil || verdict.Verdict != revoke.Complete {
		t.Errorf("the verdict is %+v, %v", verdict, err)
	}
	other := outsideConfig(t, "edge-b", s.ClientURL(), 1)
	other.Credentials = cfg.Credentials
	if _, err := Start(testContext(t), other, newFakeEngine()); err == nil || !strings.Contains(err.Error(), "deploy/nats/node.conf with edge-b for NODE_ID") {
		t.Errorf("a node with another node's credentials is told: %v", err)
	}
}
