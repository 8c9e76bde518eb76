package config

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"strings"
)

// maxSecretBytes bounds a secret file; a SCRAM password of Postgres is cut far below this.
const maxSecretBytes = 4096

// Secret is a value that prints as ***, in every format. Reveal hands it out.
type Secret string

const masked = "***"

// Reveal returns the value itself, for the code that needs it.
func (s Secret) Reveal() string { return string(s) }

func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return masked
}

// GoString keeps %#v from printing the value.
func (s Secret) GoString() string { return s.String() }

// MarshalText keeps JSON and YAML from printing the value.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue keeps slog from printing the value.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// RedactURL returns the URL without its secrets: a password, or a user that stands alone in a NATS URL (a token),
// becomes ***. It works on text, not on a parsed URL, so that a broken URL keeps its secrets too.
func RedactURL(raw string) string {
	user, password, rest, ok := splitUserinfo(raw)
	scheme, _, _ := strings.Cut(raw, "://")
	switch {
	case !ok:
	case password != "":
		raw = scheme + "://" + user + ":" + masked + "@" + rest
	case scheme == "nats" || scheme == "tls":
		raw = scheme + "://" + masked + "@" + rest
	}
	if i := strings.Index(raw, "password="); i >= 0 {
		i += len("password=")
		end := len(raw)
		if j := strings.IndexByte(raw[i:], '&'); j >= 0 {
			end = i + j
		}
		raw = raw[:i] + masked + raw[end:]
	}
	return raw
}

// splitUserinfo cuts scheme://user:password@rest. The last @ counts: a password that was not encoded stays whole.
func splitUserinfo(raw string) (user, password, rest string, ok bool) {
	_, after, found := strings.Cut(raw, "://")
	if !found {
		return "", "", "", false
	}
	at := strings.LastIndexByte(after, '@')
	if at < 0 {
		return "", "", after, false
	}
	user, password, _ = strings.Cut(after[:at], ":")
	return user, password, after[at+1:], true
}

// readSecretFile reads a secret of one line. A file that everybody can read, or that others can write, is refused:
// whoever finds the error message fixes the mode in a second, whoever does not would have leaked the password.
// The warning is set when the file's group can read it, which is normal for mounted secrets and for nothing else.
func readSecretFile(path string) (secret Secret, warning string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", "", fmt.Errorf("cannot open secret file: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", "", fmt.Errorf("cannot stat secret file: %w", err)
	}
	if !st.Mode().IsRegular() {
		return "", "", fmt.Errorf("cannot use secret file %s: it is not a regular file", path)
	}
	warning, err = checkSecretMode(path, st.Mode().Perm())
	if err != nil {
		return "", "", err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSecretBytes+1))
	if err != nil {
		return "", "", fmt.Errorf("cannot read secret file: %w", err)
	}
	if len(b) > maxSecretBytes {
		return "", "", fmt.Errorf("cannot use secret file %s: it is longer than %d bytes", path, maxSecretBytes)
	}
	s := strings.TrimRight(string(b), "\r\n")
	switch {
	case s == "":
		return "", "", fmt.Errorf("cannot use secret file %s: it is empty", path)
	case strings.ContainsAny(s, "\r\n\x00"):
		return "", "", fmt.Errorf("cannot use secret file %s: it holds more than one line", path)
	}
	return Secret(s), warning, nil
}

func checkSecretMode(path string, mode os.FileMode) (warning string, err error) {
	if mode&0o026 != 0 {
		return "", fmt.Errorf("cannot use secret file %s: its mode %04o lets others read or write it; chmod 600 it (Kubernetes: defaultMode: 0400)", path, mode)
	}
	if mode&0o040 != 0 {
		warning = fmt.Sprintf("secret file %s can be read by its group (mode %04o)", path, mode)
	}
	return warning, nil
}

// checkFile looks at a file that somebody else reads: it has to be there and, when it holds a secret, for its owner only.
func checkFile(path string, secret bool) (warning string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("cannot open: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("cannot stat: %w", err)
	}
	if !st.Mode().IsRegular() {
		return "", fmt.Errorf("cannot use %s: it is not a regular file", path)
	}
	if !secret {
		return "", nil
	}
	return checkSecretMode(path, st.Mode().Perm())
}

// expandEnv replaces each ${NAME} by the variable's value. Inside the userinfo of a URL the value is
// percent-encoded, so that a password needs no preparation; a value that is nothing but one ${NAME} is taken as it
// is, so that a variable can hold a whole URL. used reports whether there was a reference at all.
func expandEnv(s string, lookup func(string) (string, bool)) (out string, used bool, err error) {
	if strings.HasPrefix(s, "${") && strings.IndexByte(s, '}') == len(s)-1 {
		v, err := lookupEnv(s[2:len(s)-1], lookup)
		return v, true, err
	}
	userinfoEnd := 0
	if i := strings.Index(s, "://"); i >= 0 {
		end := len(s)
		if j := strings.IndexAny(s[i+3:], "/?#"); j >= 0 {
			end = i + 3 + j
		}
		if j := strings.LastIndexByte(s[:end], '@'); j > i {
			userinfoEnd = j
		}
	}
	var b strings.Builder
	var errs []error
	for pos := 0; ; {
		i := strings.Index(s[pos:], "${")
		if i < 0 {
			b.WriteString(s[pos:])
			return b.String(), used, errors.Join(errs...)
		}
		i += pos
		j := strings.IndexByte(s[i:], '}')
		if j < 0 {
			return "", true, errors.New("${ is not closed by }")
		}
		used = true
		v, err := lookupEnv(s[i+2:i+j], lookup)
		if err != nil {
			errs = append(errs, err)
		}
		if i < userinfoEnd {
			v = escapeUserinfo(v)
		}
		b.WriteString(s[pos:i])
		b.WriteString(v)
		pos = i + j + 1
	}
}

func lookupEnv(name string, lookup func(string) (string, bool)) (string, error) {
	if name == "" {
		return "", errors.New("${} names no environment variable")
	}
	v, ok := lookup(name)
	if !ok || v == "" {
		return "", fmt.Errorf("environment variable %s is not set", name)
	}
	return v, nil
}

// escapeUserinfo encodes a user or password for a URL. PathEscape leaves characters alone that end or split a
// userinfo.
func escapeUserinfo(s string) string {
	return strings.NewReplacer("@", "%40", ":", "%3A", "$", "%24", "&", "%26", "+", "%2B", "=", "%3D").Replace(url.PathEscape(s))
}
