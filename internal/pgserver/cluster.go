package pgserver

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
)

// makeCluster runs initdb into dataDir and adds the standard roles and database. workDir holds the unix socket
// while it does so. The result is a cleanly shut down data directory that may be copied.
func makeCluster(ctx context.Context, binDir string, who *owner, workDir, dataDir string) error {
	err := runProgram(ctx, who, workDir, filepath.Join(binDir, "initdb"),
		"-D", dataDir, "-U", superuser, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
	if err != nil {
		return err
	}
	if err := writeHBA(dataDir, who, nil); err != nil {
		return err
	}
	// Only the unix socket is needed, and its name is all that the port is for.
	s := &Server{Port: 5432, SocketDir: workDir, DataDir: dataDir, Superuser: superuser}
	if err := writeConf(s, who, Options{MaxConnections: 20}); err != nil {
		return err
	}
	p, err := startPostgres(ctx, binDir, who, dataDir, s.ping)
	if err != nil {
		return err
	}
	err = s.exec(ctx, "postgres", standardSQL())
	if err == nil {
		err = s.exec(ctx, Database, databaseSQL())
	}
	if err != nil {
		return errors.Join(err, p.stop())
	}
	if !p.signal(syscall.SIGINT) { // Fast shutdown: it writes the checkpoint that a copy needs.
		return errors.Join(errors.New("cannot shut the new cluster down"), p.stop())
	}
	return nil
}

// copyTemplate fills dataDir from a cached cluster, which it makes first if there is none for this version of
// Postgres and this set of roles.
func copyTemplate(ctx context.Context, binDir string, who *owner, dataDir string) error {
	home, err := makeHome(who)
	if err != nil {
		return err
	}
	version, err := exec.CommandContext(ctx, filepath.Join(binDir, "postgres"), "--version").Output()
	if err != nil {
		return fmt.Errorf("cannot ask postgres for its version: %w", err)
	}
	key := sha256.Sum256([]byte(binDir + string(version) + strings.Join(standardSQL(), ";") + strings.Join(databaseSQL(), ";")))
	template := filepath.Join(home, "template-"+hex.EncodeToString(key[:8]))
	if _, err := os.Stat(template); errors.Is(err, os.ErrNotExist) {
		if err := makeTemplate(ctx, binDir, who, template); err != nil {
			return err
		}
	} else if err != nil {
		return fmt.Errorf("cannot look at the cached cluster: %w", err)
	}
	// cp keeps owner and mode, and shares blocks where the file system can.
	if out, err := exec.CommandContext(ctx, "cp", "-a", template, dataDir).CombinedOutput(); err != nil {
		return fmt.Errorf("cannot copy the cached cluster: %w\n%s", err, out)
	}
	return nil
}

// makeTemplate builds beside the final name and renames, so that nobody copies half a cluster. Two processes may
// build at once; the second one's rename fails and it uses the first one's.
func makeTemplate(ctx context.Context, binDir string, who *owner, template string) error {
	rd, err := newRunDir(who)
	if err != nil {
		return err
	}
	building := filepath.Join(rd.path, "data")
	err = makeCluster(ctx, binDir, who, rd.path, building)
	if err == nil {
		err = os.Rename(building, template)
		if errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, syscall.EEXIST) {
			err = nil
		}
	}
	if err != nil {
		err = fmt.Errorf("cannot make the cached cluster: %w", err)
	}
	return errors.Join(err, rd.remove())
}

// writeConf replaces postgresql.conf: what initdb writes there is a commented copy of the defaults.
func writeConf(s *Server, who *owner, o Options) error {
	settings := map[string]string{
		"listen_addresses":           s.Host, // empty while the cluster is being made: unix socket only
		"port":                       strconv.Itoa(s.Port),
		"unix_socket_directories":    s.SocketDir,
		"max_connections":            strconv.Itoa(o.MaxConnections),
		"lc_messages":                "C",
		"timezone":                   "UTC",
		"log_timezone":               "UTC",
		"log_connections":            "off",
		"log_line_prefix":            "%m [%p] %q%u@%d ",
		"dynamic_shared_memory_type": "posix",
		"max_wal_size":               "4GB", // no checkpoint in the middle of a test that moves gigabytes
	}
	if !o.Durable {
		settings["fsync"] = "off"
		settings["full_page_writes"] = "off"
	}
	if o.TLS {
		settings["ssl"] = "on"
		settings["ssl_cert_file"] = certName
		settings["ssl_key_file"] = keyName
	}
	for k, v := range o.Settings {
		settings[k] = v
	}
	names := make([]string, 0, len(settings))
	for k := range settings {
		names = append(names, k)
	}
	sort.Strings(names)
	var b strings.Builder
	for _, k := range names {
		fmt.Fprintf(&b, "%s = '%s'\n", k, strings.ReplaceAll(settings[k], "'", "''"))
	}
	return writeOwned(filepath.Join(s.DataDir, "postgresql.conf"), []byte(b.String()), who)
}
