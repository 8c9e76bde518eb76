package codec

import (
	"bytes"
	"unicode/utf8"
)

// Severity is the non-localised severity of an error or notice.
type Severity string

const (
	SeverityError   Severity = "ERROR" // the statement ends, the session goes on
	SeverityFatal   Severity = "FATAL" // the session ends
	SeverityPanic   Severity = "PANIC" // all sessions of the server end
	SeverityWarning Severity = "WARNING"
	SeverityNotice  Severity = "NOTICE"
)

const (
	// MaxErrorFieldLength bounds each text of an error in bytes. Three of them stay below the 30000 bytes
	// beyond which libpq takes the answer to a startup packet for garbage.
	MaxErrorFieldLength = 8192

	sqlstateLength    = 5
	codeInternalError = "XX000"
)

// ErrorFields is what is read and written of an ErrorResponse.
type ErrorFields struct {
	Severity Severity
	Code     string // SQLSTATE
	Message  string
	Detail   string // optional
	Hint     string // optional
}

// AppendErrorResponse appends a whole ErrorResponse. Severity, code and message are always present: what is missing
// becomes FATAL, XX000 and "unknown error". Texts end at a NUL and at MaxErrorFieldLength, without cutting a
// UTF-8 character.
func AppendErrorResponse(dst []byte, f ErrorFields) []byte {
	start := len(dst)
	dst = append(dst, 'E', 0, 0, 0, 0)
	severity := orElse(errorText(string(f.Severity)), string(SeverityFatal))
	code := cString(f.Code)
	if len(code) != sqlstateLength {
		code = codeInternalError
	}
	dst = appendCString(append(dst, 'S'), severity)
	dst = appendCString(append(dst, 'V'), severity)
	dst = appendCString(append(dst, 'C'), code)
	dst = appendCString(append(dst, 'M'), orElse(errorText(f.Message), "unknown error"))
	if detail := errorText(f.Detail); detail != "" {
		dst = appendCString(append(dst, 'D'), detail)
	}
	if hint := errorText(f.Hint); hint != "" {
		dst = appendCString(append(dst, 'H'), hint)
	}
	return finishMessage(append(dst, 0), start)
}

// AppendErrorResponseV2 appends an error as protocol 2.0 had it, for a client whose startup packet says so
// (PlainErrors). That client cannot read any other form.
func AppendErrorResponseV2(dst []byte, f ErrorFields) []byte {
	dst = append(dst, 'E')
	dst = append(dst, orElse(errorText(string(f.Severity)), string(SeverityFatal))...)
	dst = append(dst, ":  "...)
	dst = append(dst, errorText(f.Message)...)
	return append(dst, '\n', 0)
}

// ParseErrorResponse reads the body of an ErrorResponse or NoticeResponse and does not keep it. It takes what it can:
// unknown fields are skipped, missing ones stay empty, a last field without a terminator counts, and texts are
// cut at MaxErrorFieldLength. The non-localised severity is preferred over the localised one.
func ParseErrorResponse(body []byte) ErrorFields {
	var f ErrorFields
	localised := ""
	for len(body) > 0 && body[0] != 0 {
		field := body[0]
		value, rest, _ := bytes.Cut(body[1:], []byte{0})
		text := errorText(string(value[:min(len(value), MaxErrorFieldLength+utf8.UTFMax)]))
		switch field {
		case 'S':
			localised = text
		case 'V':
			f.Severity = Severity(text)
		case 'C':
			f.Code = text
		case 'M':
			f.Message = text
		case 'D':
			f.Detail = text
		case 'H':
			f.Hint = text
		}
		body = rest
	}
	if f.Severity == "" {
		f.Severity = Severity(localised)
	}
	return f
}

// errorText cuts a text at a NUL and at MaxErrorFieldLength, before the character that would cross it.
func errorText(s string) string {
	s = cString(s)
	if len(s) <= MaxErrorFieldLength {
		return s
	}
	end := MaxErrorFieldLength
	for end > MaxErrorFieldLength-utf8.UTFMax && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end]
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
