package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func writeMode(t *testing.T, name, content string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAFleetOfEmbeddedServersIsRead(t *testing.T) {
	secret := writeMode(t, "secret", "0123456789abcdef0123456789abcdef\n", 0o600)
	c, r := load(t, oneDatabase+"cluster: {replicas: 3, routes: {listen: '10.0.0.1:6222', peers: ['10.0.0.1:6222', 'b:6222'], secret_file: "+secret+"}}\n", "CONTROL=x")
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	want := Routes{Listen: "10.0.0.1:6222", Peers: []string{"10.0.0.1:6222", "b:6222"}, Secret: "0123456789abcdef0123456789abcdef", secretFile: secret}
	if diff := cmp.Diff(want, c.Cluster.Routes, cmp.AllowUnexported(Routes{})); diff != "" || c.Cluster.Replicas != 3 {
		t.Errorf("replicas %d, %s", c.Cluster.Replicas, diff)
	}
	if len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0].Text, "cross the network in clear") {
		t.Errorf("warnings %q", lines(r.Warnings))
	}
}

func TestWhatDoesNotFitTogetherInAClusterIsRefused(t *testing.T) {
	open := writeMode(t, "creds", "x", 0o644)
	short := writeMode(t, "short", "short", 0o600)
	for name, tc := range map[string]struct{ text, want string }{
		"routes without a secret":      {"routes: {listen: '10.0.0.1:6222', peers: ['b:6222']}, replicas: 3", "cluster.routes.secret_file: is missing"},
		"a peer that is not local":     {"routes: {listen: '127.0.0.1:6222', peers: ['b:6222']}, replicas: 3", "cluster.routes.secret_file: is missing"},
		"a short secret":               {"replicas: 3, routes: {listen: '127.0.0.1:6222', peers: ['127.0.0.1:6223'], secret_file: " + short + "}", "shorter than 16 bytes"},
		"routes without peers":         {"routes: {listen: '127.0.0.1:6222'}, replicas: 3", "cluster.routes.peers: is missing"},
		"peers without listen":         {"routes: {peers: ['127.0.0.1:6222']}, replicas: 3", "cluster.routes.listen: is missing"},
		"any port":                     {"routes: {listen: '127.0.0.1:0', peers: ['127.0.0.1:6222']}, replicas: 3", "the port must be a number from 1"},
		"half a pair":                  {"nats: 'nats://x', tls: {cert_file: " + open + "}", "cluster.tls: cert_file and key_file come together"},
		"a certificate alone":          {"routes: {listen: '127.0.0.1:6222', peers: ['127.0.0.1:6223'], cert_file: " + open + ", key_file: " + short + "}, replicas: 3", "ca_file comes with cert_file"},
		"credentials for the embedded": {"creds_file: " + short, "cluster.creds_file: has no meaning"},
		"credentials others can read":  {"nats: 'nats://x', creds_file: " + open, "lets others read or write it"},
		"credentials that are missing": {"nats: 'nats://x', creds_file: /nowhere/creds", "no such file"},
		"copies without servers":       {"replicas: 3", "without cluster.routes holds one copy"},
		"routes outside":               {"nats: 'nats://x', routes: {listen: '127.0.0.1:1', peers: ['127.0.0.1:2']}", "cluster.routes.listen: has no meaning"},
	} {
		t.Run(name, func(t *testing.T) {
			_, r := load(t, oneDatabase+"cluster: {"+tc.text+"}\n", "CONTROL=x")
			if r.Err() == nil || !strings.Contains(strings.Join(lines(r.Errors), "\n"), tc.want) {
				t.Errorf("errors %q", lines(r.Errors))
			}
		})
	}
}

func TestAFaultInTheURLsOfNATSIsToldOnceAndNothingElseOfIt(t *testing.T) {
	_, r := load(t, oneDatabase+"cluster: {nats: ['nats://a:${NOT_SET}@x', 'nats://a:${NOT_SET}@y'], creds_file: /nowhere, replicas: 3}\n", "CONTROL=x")
	var told []string
	for _, line := range lines(r.Errors) {
		if !strings.Contains(line, "/nowhere") {
			told = append(told, line)
		}
	}
	if len(told) != 1 || !strings.Contains(told[0], "NOT_SET") {
		t.Errorf("errors %q", told)
	}
}
