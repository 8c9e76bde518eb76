package cluster

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	lockFile    = "lock"
	bootFile    = "boot"
	natsURLFile = "nats-url"
	journalDir  = "jetstream" // the name is the NATS server's
	// listenerFile survives a stop, unlike nats-url: whoever has joined comes back with what it holds.
	listenerFile = "nats-listener"

	// maxSmallFileBytes bounds what is read from the files of the state directory.
	maxSmallFileBytes = 4096
)

// stateDir is a locked state directory. The lock lives as long as the descriptor, so that a process that was
// killed never leaves one behind; and whoever holds it knows that the process that recorded the last boot is gone.
type stateDir struct {
	path string
	lock *os.File
}

// bootID is one run of a node.
type bootID struct {
	Node string `json:"node"`
	Boot string `json:"boot"`
}

// bootRecord names the run of the process that owns the directory, or owned it when it ended without a goodbye.
type bootRecord struct {
	bootID
	// Owed are earlier runs that ended without a goodbye, which could not be said for them yet.
	Owed []bootID `json:"owed,omitempty"`
	// Place tells the directory itself from a copy of it: see stateDir.place.
	Place string `json:"place,omitempty"`
}

// maxOwed bounds the runs that are remembered for a goodbye; the oldest go first.
const maxOwed = 32

// listenerRecord is what the embedded server was reached by.
type listenerRecord struct {
	Token string `json:"token"`
	Port  int    `json:"port"`
}

// LockedError says that another process uses the state directory.
type LockedError struct {
	Dir string
	PID int // 0 when the other process has not written it yet
}

func (e *LockedError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("state directory %s is in use by another process", e.Dir)
	}
	return fmt.Sprintf("state directory %s is in use by process %d", e.Dir, e.PID)
}

// openStateDir creates the directory if needed and locks it. It fails with *LockedError when it is taken.
func openStateDir(path string) (*stateDir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("cannot create state directory: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("cannot open state directory: %w", err)
	}
	// Whoever can write here could put another journal or another server's address in place of ours.
	if info.Mode().Perm()&0o022 != 0 {
		return nil, fmt.Errorf("state directory %s is writable by other users (mode %04o): use a directory of its own", path, info.Mode().Perm())
	}
	// The files with secrets are 0600; the journal gets a closed directory even where this one may be read by others.
	if err := os.MkdirAll(filepath.Join(path, journalDir), 0o700); err != nil {
		return nil, fmt.Errorf("cannot create journal directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(path, lockFile), os.O_RDWR|os.O_CREATE|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open lock of state directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, &LockedError{Dir: path, PID: readPID(f)}
		}
		return nil, fmt.Errorf("cannot lock state directory %s: %w", path, err)
	}
	if err := writePID(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot write lock of state directory: %w", err)
	}
	d := &stateDir{path: path, lock: f}
	// A leftover of a process that was killed would send the command line to a port that may be somebody else's by now.
	if err := d.removeNATSURL(); err != nil {
		f.Close()
		return nil, err
	}
	return d, nil
}

func readPID(f *os.File) int {
	b, err := io.ReadAll(io.LimitReader(f, 32))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0
	}
	return pid
}

func writePID(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

// lockHolder reports the process that holds the lock of a state directory, and whether there is one.
func lockHolder(path string) (pid int, held bool) {
	f, err := os.OpenFile(filepath.Join(path, lockFile), os.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); err != nil {
		return readPID(f), true
	}
	return 0, false
}

// close releases the lock. The lock file stays: removing it would let two processes lock two different files.
func (d *stateDir) close() error { return d.lock.Close() }

// previousBoot is the run that last owned the directory and did not say goodbye, nil when there is none.
func (d *stateDir) previousBoot() (*bootRecord, error) {
	b, err := readSmallFile(filepath.Join(d.path, bootFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read boot record: %w", err)
	}
	var rec bootRecord
	if err := json.Unmarshal(b, &rec); err != nil || !nodeIDPattern.MatchString(rec.Node) || rec.Boot == "" {
		return nil, fmt.Errorf("cannot read boot record %s: it is damaged; remove it to go on", filepath.Join(d.path, bootFile))
	}
	return &rec, nil
}

// listener is how the embedded server was reached before, nil when there never was one.
func (d *stateDir) listener() (*listenerRecord, error) {
	path := filepath.Join(d.path, listenerFile)
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", listenerFile, err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s holds the token of the NATS server and is open to other users (mode %04o): remove it for a new token, which every joined node then needs", path, info.Mode().Perm())
	}
	b, err := readSmallFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", listenerFile, err)
	}
	var rec listenerRecord
	if err := json.Unmarshal(b, &rec); err != nil || !isTokenOurs(rec.Token) || rec.Port < 0 || rec.Port > 65535 {
		return nil, fmt.Errorf("%s is damaged: remove it for a new token, which every joined node then needs", path)
	}
	return &rec, nil
}

func (d *stateDir) recordListener(rec listenerRecord) error {
	b, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("cannot encode %s: %w", listenerFile, err)
	}
	if err := writeFileAtomic(filepath.Join(d.path, listenerFile), append(b, '\n')); err != nil {
		return fmt.Errorf("cannot write %s: %w", listenerFile, err)
	}
	return nil
}

// place names this very directory on this very start of the machine; "" when that cannot be told. Only there does the
// lock prove that the run in the boot record has ended: a copy of the directory, on this machine or in a clone of it,
// has a lock of its own, and the run that it speaks of may be alive where the copy was taken.
func (d *stateDir) place() string {
	kernel, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	var st unix.Stat_t
	if err := unix.Stat(d.path, &st); err != nil {
		return ""
	}
	return fmt.Sprintf("%s/%d/%d", strings.TrimSpace(string(kernel)), st.Dev, st.Ino)
}

func (d *stateDir) recordBoot(rec bootRecord) error {
	b, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("cannot encode boot record: %w", err)
	}
	if err := writeFileAtomic(filepath.Join(d.path, bootFile), append(b, '\n')); err != nil {
		return fmt.Errorf("cannot write boot record: %w", err)
	}
	return nil
}

// forgetBoot is called once the run has said goodbye in the journal.
func (d *stateDir) forgetBoot() error { return removeIfThere(filepath.Join(d.path, bootFile)) }

func (d *stateDir) writeNATSURL(url string) error {
	if err := writeFileAtomic(filepath.Join(d.path, natsURLFile), []byte(url+"\n")); err != nil {
		return fmt.Errorf("cannot write %s: %w", natsURLFile, err)
	}
	return nil
}

func (d *stateDir) removeNATSURL() error { return removeIfThere(filepath.Join(d.path, natsURLFile)) }

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot remove %s: %w", filepath.Base(path), err)
	}
	return nil
}

func readSmallFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxSmallFileBytes))
}

// writeFileAtomic leaves either the old file or the complete new one, mode 0600, also after a crash of the machine.
func writeFileAtomic(path string, content []byte) error {
	// CreateTemp makes the file with mode 0600.
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return err
	}
	return nil
}

const tokenBytes = 32

// isTokenOurs says whether newToken can have made the token.
func isTokenOurs(token string) bool {
	b, err := hex.DecodeString(token)
	return err == nil && len(b) == tokenBytes
}

// newToken is the secret of the embedded server's listener: random bytes in hex.
func newToken() string {
	var b [tokenBytes]byte
	rand.Read(b[:]) // crypto/rand.Read never fails: it crashes the process instead.
	return hex.EncodeToString(b[:])
}
