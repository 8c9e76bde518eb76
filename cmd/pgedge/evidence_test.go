package main

import (
	"encoding/csv"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgedge/revoke"
)

// revoked revokes with an id in the output of the fleet's fake engine, and returns the revocation's id.
func (f *testFleet) revoked(args ...string) string {
	f.t.Helper()
	return decodeLines(f.t, f.expect(0, nil, append([]string{"revoke", "-o", "json"}, args...)...))[0]["revocation"].(string)
}

func TestReceiptsAreFoundByTheBeginningOfTheirID(t *testing.T) {
	f := startFleet(t, nil)
	first, second := f.revoked("alice"), f.revoked("bob")
	f.expect(0, []string{first, "principal.alice"}, "receipts", "show", first)
	unique := first
	for i := range first {
		if first[i] != second[i] {
			unique = first[:i+1]
			break
		}
	}
	f.expect(0, []string{first, "principal.alice"}, "receipts", "show", unique)
	f.expect(1, []string{"several revocations", first, second}, "receipts", "show", first[:4])
	f.expect(1, []string{"no receipt of " + first[:3]}, "receipts", "show", first[:3])
}

func TestEveryFactOfAnIDThatWasUsedTwiceIsShown(t *testing.T) {
	for _, tt := range []struct {
		k, id string
		want  bool
	}{
		{"HR-1", "HR-1", true}, {"HR-1-4711", "HR-1", true}, {"HR-1-x", "HR-1", false}, {"HR-12", "HR-1", false}, {"HR-1", "HR-1-4711", false}, {"HR-1-007", "HR-1", false},
		{revoke.SeqID(strings.Repeat("a", 64), 7), strings.Repeat("a", 64), true},
	} {
		if got := isFactOf(tt.k, tt.id); got != tt.want {
			t.Errorf("%s of %s: %v", tt.k, tt.id, got)
		}
	}
}

func TestAnExportHasOneRowPerSessionAndNoFormulas(t *testing.T) {
	f := startFleet(t, nil)
	f.eng.sessions[0].Application = "=cmd|' /C calc'!A0"
	id := f.revoked("alice", "--reason", "@HR-1234")
	f.revoked("nobody")
	out := f.expect(0, []string{"2 receipts exported"}, "receipts", "export")
	rows, err := csv.NewReader(strings.NewReader(out)).ReadAll()
	if err != nil || len(rows) != 4 {
		t.Fatalf("%d rows, %v\n%s", len(rows), err, out)
	}
	column := func(row []string, name string) string {
		for i, c := range rows[0] {
			if c == name {
				return row[i]
			}
		}
		t.Fatalf("no column %s", name)
		return ""
	}
	for name, want := range map[string]string{
		"revocation": id, "verb": "revoke", "scope": "principal.alice", "reason": "'@HR-1234", "session": "edge-a-1", "principal": "alice",
		"application": "'=cmd|' /C calc'!A0", "backend": "gone", "verified": "true", "xact": "aborted", "stage": "verified", "final": "true", "cut_us": "180", "backend_pid": "7",
	} {
		if got := column(rows[1], name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if column(rows[3], "session") != "" || column(rows[3], "matched") != "0" || column(rows[3], "scope") != "principal.nobody" {
		t.Errorf("the row without a session is %q", rows[3])
	}
	for _, bad := range []string{"0", "-5d", "1x", "500d"} {
		f.expect(2, []string{"--since"}, "receipts", "export", "--since", bad)
	}
	f.expect(2, []string{"none of csv, ocsf, json"}, "receipts", "export", "--format", "xml")
}

func TestAnExportInOCSFTellsTheAccountAndEachSession(t *testing.T) {
	f := startFleet(t, nil)
	f.revoked("alice")
	f.expect(0, nil, "kill", "bob")
	lines := decodeLines(t, f.run0("receipts", "export", "--format", "ocsf", "--since", "24h"))
	if len(lines) != 4 {
		t.Fatalf("%d events: %v", len(lines), lines)
	}
	for i, want := range []struct {
		class, activity, kind float64
		user                  string
	}{{3001, 5, 300105, "alice"}, {3002, 2, 300202, "alice"}, {3002, 2, 300202, "alice"}, {3002, 2, 300202, "bob"}} {
		e := lines[i]
		user := e["user"].(map[string]any)["name"]
		meta := e["metadata"].(map[string]any)
		if e["class_uid"] != want.class || e["activity_id"] != want.activity || e["type_uid"] != want.kind || user != want.user || e["category_uid"] != 3.0 || meta["version"] != "1.3.0" || e["time"] == 0.0 {
			t.Errorf("event %d is %v", i, e)
		}
		if want.class == 3002 && (e["session"].(map[string]any)["uid"] == "" || e["service"] == nil) {
			t.Errorf("event %d is %v", i, e)
		}
	}
}

func (f *testFleet) run0(args ...string) string {
	f.t.Helper()
	code, out, errs := f.run(args...)
	if code != 0 {
		f.t.Fatalf("%v: exit code %d\n%s%s", args, code, out, errs)
	}
	return out
}

func TestVerifyAcceptsWhatIsStoredAndFindsWhatWasChanged(t *testing.T) {
	f := startFleet(t, nil)
	id := f.revoked("alice", "--reason", "HR-1234")
	f.revoked("bob")
	file := filepath.Join(t.TempDir(), "receipts.json")
	export := f.run0("receipts", "export", "--format", "json")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(export)
	f.expect(0, []string{"2 receipts checked, 0 not final: consistent", "not checked: signatures"}, "receipts", "verify", file)
	write(f.run0("receipts", "show", id, "-o", "json"))
	f.expect(0, []string{"1 receipt checked"}, "receipts", "verify", file)
	for what, change := range map[string]struct{ old, new, finding string }{
		"another reason":   {`"reason":"HR-1234"`, `"reason":"HR-9999"`, "differs from the stored receipt in reason"},
		"another pid":      {`"backend_pid":7`, `"backend_pid":8`, "differs from the stored receipt"},
		"a session less":   {`"matched":2`, `"matched":1`, "1 sessions matched, 2 are listed"},
		"not verified":     {`"verified":true`, `"verified":false`, "unverified is 0, and 1 sessions are not verified"},
		"bytes passed":     {`"bytes_after_cut":0`, `"bytes_after_cut":9`, "passed 9 bytes after the cut"},
		"another schema":   {`pgedge.receipt/v1`, `pgedge.receipt/v9`, "schema is"},
		"another scope":    {`principal.alice`, `principal.carol`, "the journal holds no revoke of principal.carol"},
		"another id":       {id, "HR-other", "no such receipt is stored"},
		"an earlier cut":   {`"closed_us":950`, `"closed_us":1`, "earlier than the stage before it"},
		"an earlier stage": {`"stage":"verified"`, `"stage":"closed"`, "has come to stage verified"},
	} {
		changed := strings.Replace(export, change.old, change.new, 1)
		if changed == export {
			t.Errorf("%s: nothing was changed", what)
		}
		write(changed)
		f.expect(1, []string{change.finding}, "receipts", "verify", file)
	}
	line, _, _ := strings.Cut(export, "\n")
	write(line + "\n" + line + "\n")
	lines := decodeLines(t, f.expect(1, nil, "receipts", "verify", file, "-o", "json"))
	if last := lines[len(lines)-1]; last["consistent"] != false || last["findings"] != 1.0 || last["receipts"] != 2.0 || lines[0]["receipt"] != 2.0 {
		t.Errorf("got %v", lines)
	}
	for _, bad := range []string{"", "session,principal\n", `{"a":1}`, line[:len(line)/2]} {
		write(bad)
		f.expect(1, []string{"cannot read the receipts in " + file}, "receipts", "verify", file)
	}
	// A newer fact of the same verb and scope stands in the journal for the older one.
	f.revoked("alice")
	write(export)
	f.expect(0, []string{"consistent"}, "receipts", "verify", file)
}
