package pgserver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// homePath is where all servers of this user keep their directories: <tmp>/pgedge-pg-<uid>.
func homePath(who *owner) string {
	return filepath.Join(who.tempRoot(), "pgedge-pg-"+strconv.Itoa(os.Getuid()))
}

// makeHome makes homePath. The name can be guessed and the temporary directory is everybody's, so a directory
// that is a link or belongs to somebody else is refused.
func makeHome(who *owner) (string, error) {
	home := homePath(who)
	switch err := os.Mkdir(home, 0o711); {
	case err == nil:
		// The server's user walks through it, whatever the umask says.
		if err := os.Chmod(home, 0o711); err != nil {
			return "", fmt.Errorf("cannot open the directory of test servers: %w", err)
		}
	case !errors.Is(err, os.ErrExist):
		return "", fmt.Errorf("cannot make the directory of test servers: %w", err)
	}
	fi, err := os.Lstat(home)
	if err != nil {
		return "", fmt.Errorf("cannot look at the directory of test servers: %w", err)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !fi.IsDir() || !ok || int(st.Uid) != os.Getuid() || fi.Mode().Perm()&0o022 != 0 {
		return "", fmt.Errorf("cannot use %s: it is not a directory that only this user may write to", home)
	}
	return home, nil
}

// runDir is the directory of one server. A lock on a file in it says that its process is alive, so that a later
// process can remove what a killed one left behind.
type runDir struct {
	path string
	lock *os.File
}

const runPrefix = "run-"

func newRunDir(who *owner) (*runDir, error) {
	path, err := makeRunPath(who)
	if errors.Is(err, os.ErrNotExist) {
		// Another process has removed the home in between, with the last server in it.
		path, err = makeRunPath(who)
	}
	if err != nil {
		return nil, err
	}
	d := &runDir{path: path}
	if err := d.prepare(who); err != nil {
		return nil, errors.Join(err, d.remove())
	}
	return d, nil
}

func makeRunPath(who *owner) (string, error) {
	home, err := makeHome(who)
	if err != nil {
		return "", err
	}
	sweep(home)
	path, err := os.MkdirTemp(home, runPrefix)
	if err != nil {
		return "", fmt.Errorf("cannot make a server's directory: %w", err)
	}
	return path, nil
}

func (d *runDir) prepare(who *owner) error {
	lock, err := os.OpenFile(filepath.Join(d.path, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("cannot make a server's lock: %w", err)
	}
	d.lock = lock
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fmt.Errorf("cannot lock a server's directory: %w", err)
	}
	return who.own(d.path)
}

// remove removes the directory, and the home when nothing else is in it: a demo leaves nothing behind.
func (d *runDir) remove() error {
	if d.lock != nil {
		defer d.lock.Close()
	}
	if err := os.RemoveAll(d.path); err != nil {
		return fmt.Errorf("cannot remove a server's directory: %w", err)
	}
	_ = os.Remove(filepath.Dir(d.path)) // It fails while there is another server or a cached cluster.
	return nil
}

// sweep removes the directories of processes that died without Stop. Young ones are left alone: their process may
// be between making the directory and locking it, or its Postgres may still be on its way down.
func sweep(home string) {
	const minAge = time.Minute
	dirs, _ := filepath.Glob(filepath.Join(home, runPrefix+"*")) // A bad pattern is the only error.
	for _, dir := range dirs {
		fi, err := os.Lstat(dir)
		if err != nil || time.Since(fi.ModTime()) < minAge {
			continue
		}
		lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR, 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			continue
		}
		if lock != nil {
			if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
				_ = os.RemoveAll(dir) // What cannot be removed now is tried again at the next start.
			}
			lock.Close()
			continue
		}
		_ = os.RemoveAll(dir)
	}
}
