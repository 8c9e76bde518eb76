package main

import (
	"bufio"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"pgedge/cluster"
	"pgedge/cmd/pgedge/config"
	"pgedge/engine"
)

const (
	// fewSessions is below what a machine that carries a fleet's clients is expected to hold.
	fewSessions = 1000
	// littleSpaceBytes is when a journal on its own disk is about to refuse writes.
	littleSpaceBytes = 256 << 20
	// certificateWarning is how long before its end a certificate is worth a line.
	certificateWarning = 30 * 24 * time.Hour
	// maxClockOff is how far clocks may differ before times in receipts and suspends mislead.
	maxClockOff = 2 * time.Second
	// maxClockDrift is how far the two clocks of this machine may part while the doctor looks.
	maxClockDrift = 100 * time.Millisecond
)

// configuration loads the configuration as serve would. It reports false when that has errors.
func (d *doctor) configuration(sources config.Sources, hasUpstream bool) bool {
	cfg, report := config.Load(sources)
	d.cfg = cfg
	errs := 0
	for _, p := range report.Errors {
		if p.Key == "databases" && !hasUpstream {
			continue // nobody has asked about a database
		}
		errs++
		d.note(levelFail, "configuration", "", "%s", p)
	}
	for _, p := range report.Warnings {
		d.note(levelWarn, "configuration", "", "%s", p)
	}
	if errs > 0 {
		return false
	}
	what := "defaults"
	if sources.File != "" {
		what = sources.File
	}
	d.note(levelOK, "configuration", "", "%s: node %s", what, cfg.Node)
	return true
}

func (d *doctor) stateDir() {
	dir := d.cfg.StateDir
	r := cluster.InspectStateDir(dir)
	for _, p := range r.Problems {
		d.note(levelFail, "state_dir", "", "%s: %s", dir, p)
	}
	if len(r.Problems) > 0 {
		return
	}
	if !r.Exists {
		parent := dir
		for parent != filepath.Dir(parent) {
			parent = filepath.Dir(parent)
			if _, err := os.Stat(parent); err == nil {
				break
			}
		}
		if err := unix.Access(parent, unix.W_OK|unix.X_OK); err != nil {
			d.note(levelFail, "state_dir", "create it for the user that runs the node, mode 700", "%s does not exist, and this user cannot create it in %s", dir, parent)
			return
		}
		d.note(levelOK, "state_dir", "", "%s does not exist yet: the first start makes it", dir)
		return
	}
	if err := unix.Access(dir, unix.R_OK|unix.W_OK|unix.X_OK); err != nil {
		d.note(levelWarn, "state_dir", "run doctor as the user that runs the node", "%s cannot be used by this user", dir)
		return
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err == nil {
		if free := int64(fs.Bavail) * fs.Bsize; free < littleSpaceBytes {
			d.note(levelWarn, "state_dir", "make room: a journal that cannot be written takes no revocation", "%s: %d MiB free", dir, free>>20)
			return
		}
	}
	switch {
	case r.Held && r.Holder > 0:
		d.note(levelOK, "state_dir", "", "%s is in use by process %d", dir, r.Holder)
	case r.Held:
		d.note(levelOK, "state_dir", "", "%s is in use", dir)
	default:
		d.note(levelOK, "state_dir", "", "%s: no node runs here", dir)
	}
}

// descriptors looks at the limit of the running node, or else at this process's, which a service may not share.
func (d *doctor) descriptors() {
	limit, whose := 0, ""
	if r := cluster.InspectStateDir(d.cfg.StateDir); r.Holder > 0 {
		if n, err := descriptorsOf(r.Holder); err == nil {
			limit, whose = n, fmt.Sprintf("process %d", r.Holder)
		}
	}
	if limit == 0 {
		var rl unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &rl); err != nil {
			d.note(levelSkip, "descriptors", "", "cannot read the limit: %v", err)
			return
		}
		limit, whose = int(min(rl.Cur, 1<<22)), "this shell"
	}
	sessions, err := engine.SessionCapacity(limit, d.cfg.Limits.MaxSessions)
	const do = "raise it: LimitNOFILE= in the unit, or ulimit -n"
	switch {
	case err != nil:
		d.note(levelFail, "descriptors", do, "%s: %v", whose, err)
	case sessions < fewSessions && d.cfg.Limits.MaxSessions == 0:
		d.note(levelWarn, "descriptors", do, "%s may open %d files: room for %d sessions", whose, limit, sessions)
	default:
		d.note(levelOK, "descriptors", "", "%s may open %d files: %d sessions", whose, limit, sessions)
	}
}

func descriptorsOf(pid int) (int, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "Max open files"); ok {
			if fields := strings.Fields(rest); len(fields) > 0 {
				return strconv.Atoi(fields[0])
			}
		}
	}
	return 0, errors.New("no such line")
}

// canary says whether this node takes part in drills.
func (d *doctor) canary() {
	if d.cfg.Drill.User == "" {
		d.note(levelSkip, "canary", "configure drill: and run pgedge drill every day", "there is none: nothing shows that a revocation works on this node today")
		return
	}
	d.note(levelOK, "canary", "", "%s in database %s: pgedge drill shows whether a revocation works today", d.cfg.Drill.User, d.cfg.Drill.Database)
}

// certificateFiles looks at the certificates that the configuration names.
func (d *doctor) certificateFiles() {
	seen := map[string]bool{}
	look := func(key, path string) {
		if path == "" || path == "system" || seen[path] {
			return
		}
		seen[path] = true
		certs, err := readCertificates(path)
		if err != nil {
			d.note(levelFail, "certificates", "", "%s: %v", key, err)
			return
		}
		d.expiry("certificates", key+" "+path, certs, levelFail)
	}
	c := d.cfg.Cluster
	look("cluster.tls.ca_file", c.TLS.CAFile)
	look("cluster.tls.cert_file", c.TLS.CertFile)
	look("cluster.routes.ca_file", c.Routes.TLS.CAFile)
	look("cluster.routes.cert_file", c.Routes.TLS.CertFile)
	for _, name := range databaseNames(d.cfg) {
		if up, err := upstreamOf(d.cfg.Databases[name]); err == nil {
			look("databases."+name+" sslrootcert", up.SSLRootCert)
		}
	}
}

func readCertificates(path string) ([]*x509.Certificate, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("%s holds no certificate", path)
	}
	return certs, nil
}

// expiry looks at when certificates end; expired is the level of one that has.
func (d *doctor) expiry(check, what string, certs []*x509.Certificate, expired string) {
	now := time.Now()
	first := certs[0]
	for _, c := range certs {
		if c.NotAfter.Before(first.NotAfter) {
			first = c
		}
	}
	name := orWord(first.Subject.CommonName, "a certificate")
	switch left := first.NotAfter.Sub(now); {
	case left <= 0:
		d.note(expired, check, "renew it", "%s: %s expired %s ago, at %s", what, name, age(-left), stamp(first.NotAfter))
	case now.Before(first.NotBefore):
		d.note(expired, check, "check this machine's clock", "%s: %s is valid from %s only", what, name, stamp(first.NotBefore))
	case left < certificateWarning:
		d.note(levelWarn, check, "renew it", "%s: %s expires in %s, at %s", what, name, age(left), stamp(first.NotAfter))
	default:
		d.note(levelOK, check, "", "%s: valid for %s", what, age(left))
	}
}

func orWord(s, otherwise string) string {
	if s != "" {
		return s
	}
	return otherwise
}

// clocks are the two that a lease ends by.
type clocks struct {
	wall time.Time
	boot time.Duration
}

func readClocks() clocks {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return clocks{}
	}
	// Round drops the monotonic reading: it is the wall clock's own steps that matter.
	return clocks{time.Now().Round(0), time.Duration(ts.Nano())}
}

// clockDrift looks whether the wall clock was stepped while the doctor looked.
func (d *doctor) clockDrift() {
	now := readClocks()
	drift := now.wall.Sub(d.clocks.wall) - (now.boot - d.clocks.boot)
	if drift.Abs() > maxClockDrift {
		d.note(levelWarn, "clocks", "let chrony or ntpd slew the clock: a step costs frozen sessions a heartbeat", "this machine's wall clock was stepped by %s while it was looked at", drift.Round(time.Millisecond))
		return
	}
	d.note(levelOK, "clocks", "", "this machine's wall clock keeps pace with its boot clock")
}

// clockOf judges a server's clock, whose distance is known to within uncertain.
func (d *doctor) clockOf(what string, ahead, uncertain time.Duration) {
	if ahead.Abs()-uncertain > maxClockOff {
		direction := "ahead of"
		if ahead < 0 {
			direction = "behind"
		}
		d.note(levelWarn, "clocks", "synchronise both with NTP: times in receipts and the end of a suspend would mislead", "the clock of %s is %s %s this machine's", what, ahead.Abs().Round(time.Millisecond), direction)
		return
	}
	d.note(levelOK, "clocks", "", "%s: %s off at most", what, (ahead.Abs() + uncertain).Round(time.Millisecond))
}
