package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"pgedge/cluster"
	"pgedge/revoke"
)

// swallow relays connections to a NATS server and drops everything that a client sends from its first fact on, as a
// network does that has just broken. It returns the URL to use.
func swallow(t *testing.T, stateDir string) string {
	t.Helper()
	u := natsURL(t, stateDir)
	server := u.Host
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	t.Cleanup(func() { l.Close(); running.Wait() })
	running.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			behind, err := net.Dial("tcp", server)
			if err != nil {
				client.Close()
				continue
			}
			running.Go(func() { io.Copy(client, behind); client.Close() })
			running.Go(func() {
				defer behind.Close()
				buf := make([]byte, 64<<10)
				for silent := false; ; {
					n, err := client.Read(buf)
					silent = silent || bytes.Contains(buf[:n], []byte("HPUB pgedge.revoke."))
					if err != nil {
						return
					}
					if !silent {
						behind.Write(buf[:n])
					}
				}
			})
		}
	})
	u.Host = l.Addr().String()
	return u.String()
}

// A revoke of two principals ran for minutes in spite of --wait 2s when publications got no answer.
func TestWaitBoundsPublicationsThatGetNoAnswer(t *testing.T) {
	f := startFleet(t, nil)
	nats := swallow(t, f.dir)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var out, errs bytes.Buffer
	code := run(ctx, []string{"revoke", "aa", "bb", "cc", "--wait", "500ms", "--nats", nats}, stdio{in: strings.NewReader(""), out: &out, err: &errs})
	if ctx.Err() != nil {
		t.Error("--wait 500ms did not end it")
	}
	if code != exitUnproven || !strings.Contains(errs.String(), "3 of 3 failed") || !strings.Contains(errs.String(), "not proven to be stored") {
		t.Errorf("exit code %d\n%s%s", code, out.String(), errs.String())
	}
}

// All facts are sent at the same time; they are told in the order in which they were typed.
func TestAFactThatHangsHoldsUpNoOther(t *testing.T) {
	names := []string{"aa", "bb", "cc"}
	scopes := make([]revoke.Scope, len(names))
	for i, name := range names {
		scopes[i] = revoke.Scope{Kind: revoke.ScopePrincipal, Name: name}
	}
	var out bytes.Buffer
	a := &app{io: stdio{out: &out}, output: "text"}
	sent := make(chan struct{}, len(names))
	release := make(chan struct{})
	go func() {
		for range names {
			<-sent
		}
		close(release)
	}()
	pubs, failed, err := a.publishAll(scopes, func(int) cluster.PublishOptions { return cluster.PublishOptions{} },
		func(s revoke.Scope, _ cluster.PublishOptions) (*cluster.Publication, error) {
			sent <- struct{}{}
			<-release // which comes once every fact has been sent
			if s.Name == "bb" {
				return nil, cluster.ErrNotStored
			}
			return &cluster.Publication{ID: "id-" + s.Name, Verb: revoke.VerbRevoke, Scope: s}, nil
		})
	if err != nil || len(failed) != 1 || len(pubs) != 2 || pubs[0].Scope.Name != "aa" || pubs[1].Scope.Name != "cc" {
		t.Errorf("stored %v, failed %v, %v", pubs, failed, err)
	}
	if text := out.String(); strings.Index(text, "id-aa") > strings.Index(text, "id-cc") || strings.Contains(text, "bb") {
		t.Error(text)
	}
}

func TestTwoHundredPrincipalsAreRevokedAndReinstatedByOneCommand(t *testing.T) {
	f := startFleet(t, nil)
	names := make([]string, 200)
	for i := range names {
		names[i] = fmt.Sprintf("user%03d", i)
	}
	f.expect(0, []string{"stored  ", "complete: no session matched"}, append([]string{"revoke"}, names...)...)
	if n := len(decodeLines(t, f.expect(0, nil, "revocations", "-o", "json"))); n != len(names) {
		t.Errorf("%d of %d are in force", n, len(names))
	}
	f.expect(0, []string{"undoes  revoke of principal user199"}, append([]string{"reinstate"}, names...)...)
	f.expect(0, []string{"nothing is revoked"}, "revocations")
}
