package config

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Limits of values. They are far beyond sensible use and there to catch a slip of the unit.
const (
	maxSessionsLimit  = 1_000_000
	maxLoginsLimit    = 100_000
	maxLoops          = 1024 // as many as gnet takes at most
	maxTimeout        = 365 * 24 * time.Hour
	maxListens        = 16
	maxNATSURLs       = 16
	maxDatabases      = 1000
	maxContactBytes   = 200
	maxPathBytes      = 4096
	maxNameBytes      = 63  // NAMEDATALEN - 1
	maxUnixPathBytes  = 107 // sun_path, without its NUL
	longestSocketName = len("/.s.PGSQL.65535.lock")
)

var nodeID = regexp.MustCompile(`^[A-Za-z0-9_-]{1,63}$`)

func parseNode(s string) (string, error) {
	if !nodeID.MatchString(s) {
		return "", fmt.Errorf("%q is not a node id: 1 to 63 of A-Z a-z 0-9 _ -", s)
	}
	return s, nil
}

// parseDuration reads Go's syntax (1m30s). A bare number has no unit and is refused, but for 0.
func parseDuration(s string, lowest, highest time.Duration, zeroOK bool) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		if _, numErr := strconv.ParseFloat(s, 64); numErr == nil {
			return 0, fmt.Errorf("%s has no unit: write %ss, %sm or %sh", s, s, s, s)
		}
		return 0, fmt.Errorf("%q is not a duration such as 30s, 5m or 1h30m", s)
	}
	if d == 0 && zeroOK {
		return 0, nil
	}
	if d < lowest || d > highest {
		zero := ""
		if zeroOK {
			zero = ", or 0 to switch it off"
		}
		return 0, fmt.Errorf("%s is out of range: %s to %s%s", s, shortDuration(lowest), shortDuration(highest), zero)
	}
	return d, nil
}

// shortDuration is Duration.String without zero minutes and seconds at its end.
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

func parseInt(s string, lowest, highest int) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0, fmt.Errorf("%q is not a whole number", s)
	}
	if n < lowest || n > highest {
		return 0, fmt.Errorf("%d is out of range: %d to %d", n, lowest, highest)
	}
	return n, nil
}

func parseListen(vs []string) ([]string, error) {
	if len(vs) == 0 {
		return nil, errors.New("lists no address")
	}
	if len(vs) > maxListens {
		return nil, fmt.Errorf("lists %d addresses, more than %d", len(vs), maxListens)
	}
	seen := map[string]bool{}
	var errs []error
	for _, v := range vs {
		if err := checkListen(v); err != nil {
			errs = append(errs, err)
		} else if seen[v] && !strings.HasSuffix(v, ":0") {
			errs = append(errs, fmt.Errorf("%s is listed twice", v))
		}
		seen[v] = true
	}
	return vs, errors.Join(errs...)
}

func checkListen(v string) error {
	if name, ok := strings.CutPrefix(v, "systemd:"); ok || v == "systemd" {
		// As systemd has it: FileDescriptorName= takes up to 255 printable ASCII characters but colons.
		if ok && (name == "" || len(name) > 255 || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || r == ':' })) {
			return fmt.Errorf("%q: not the name of a systemd socket", v)
		}
		return nil
	}
	if dir, ok := strings.CutPrefix(v, "unix:"); ok {
		switch {
		case !filepath.IsAbs(dir):
			return fmt.Errorf("%s: the directory of a unix socket must be an absolute path", v)
		case len(dir)+longestSocketName > maxUnixPathBytes:
			return fmt.Errorf("%s: the path of a unix socket is too long", v)
		}
		return nil
	}
	return checkHostPort(v)
}

// checkHostPort takes host:port, [::1]:port and :port.
func checkHostPort(v string) error {
	host, port, err := net.SplitHostPort(v)
	if err != nil {
		return fmt.Errorf("%q is not an address of the form host:port", v)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return fmt.Errorf("%q: the port must be a number from 0 to 65535", v)
	}
	if strings.ContainsAny(host, " \t/@") || len(host) > 255 {
		return fmt.Errorf("%q: %q is not a host", v, host)
	}
	return nil
}

func parseAdmin(s string) (string, error) {
	if s == "off" {
		return "", nil
	}
	if err := checkHostPort(s); err != nil {
		return "", fmt.Errorf("%w, or off", err)
	}
	return s, nil
}

func parsePath(s string) (string, error) {
	switch {
	case s == "":
		return "", errors.New("is empty")
	case len(s) > maxPathBytes:
		return "", fmt.Errorf("is longer than %d bytes", maxPathBytes)
	case strings.ContainsRune(s, 0):
		return "", errors.New("holds a NUL byte")
	}
	return s, nil
}

// parseContact takes one printable line, since it is shown in a client's terminal.
func parseContact(s string) (string, error) {
	if len(s) > maxContactBytes {
		return "", fmt.Errorf("is longer than %d bytes", maxContactBytes)
	}
	if !utf8.ValidString(s) {
		return "", errors.New("is not UTF-8")
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return "", fmt.Errorf("holds a character that cannot be printed (%U)", r)
		}
	}
	return s, nil
}

// parseNATS takes "embedded" or a list of URLs, separated by commas when they come as one string.
func parseNATS(vs []string) ([]Secret, error) {
	if len(vs) == 1 {
		vs = strings.Split(vs[0], ",")
	}
	if len(vs) == 1 && strings.TrimSpace(vs[0]) == "embedded" {
		return nil, nil
	}
	if len(vs) > maxNATSURLs {
		return nil, fmt.Errorf("lists %d URLs, more than %d", len(vs), maxNATSURLs)
	}
	var urls []Secret
	var errs []error
	for _, v := range vs {
		v = strings.TrimSpace(v)
		if err := CheckNATSURL(v); err != nil {
			errs = append(errs, err)
			continue
		}
		urls = append(urls, Secret(v))
	}
	if len(vs) == 0 {
		errs = append(errs, errors.New("is empty: write embedded or a NATS URL"))
	}
	return urls, errors.Join(errs...)
}

// CheckNATSURL says what is wrong with the URL of a NATS server. Its error does not hold the URL's secrets.
func CheckNATSURL(v string) error {
	if v == "" {
		return errors.New("is empty: write embedded or a NATS URL")
	}
	u, err := url.Parse(v)
	if err != nil {
		return errors.New("cannot be read as a URL such as nats://token@host:4222")
	}
	switch u.Scheme {
	case "nats", "tls":
	case "ws", "wss":
		return fmt.Errorf("%s: websocket URLs: %w", RedactURL(v), errUnsupported)
	default:
		return fmt.Errorf("%s: the scheme must be nats or tls", RedactURL(v))
	}
	if u.Hostname() == "" {
		return fmt.Errorf("%s: names no host", RedactURL(v))
	}
	return nil
}

// DefaultStateDir is $PGEDGE_STATE_DIR, else /var/lib/pgedge for root and $XDG_STATE_HOME/pgedge (by default
// ~/.local/state/pgedge) for others.
func DefaultStateDir() (string, error) {
	if d := os.Getenv("PGEDGE_STATE_DIR"); d != "" {
		return d, nil
	}
	if os.Geteuid() == 0 {
		return "/var/lib/pgedge", nil
	}
	if d := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, "pgedge"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("cannot find a state directory: %w; set state_dir or PGEDGE_STATE_DIR", err)
	}
	return filepath.Join(home, ".local", "state", "pgedge"), nil
}

// defaultNode is the hostname up to its first dot.
func defaultNode() (string, error) {
	h, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("cannot read the hostname: %w; set node", err)
	}
	h, _, _ = strings.Cut(h, ".")
	if !nodeID.MatchString(h) {
		return "", fmt.Errorf("the hostname %q is no node id (1 to 63 of A-Z a-z 0-9 _ -); set node", h)
	}
	return h, nil
}

// parseName takes the name of a role or a database, as a startup packet can hold it.
func parseName(s string) (string, error) {
	if s == "" || len(s) > maxNameBytes || strings.ContainsRune(s, 0) {
		return "", fmt.Errorf("must have 1 to %d bytes", maxNameBytes)
	}
	return s, nil
}
