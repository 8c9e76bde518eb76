package main

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"pgedge/revoke"
)

// The Open Cybersecurity Schema Framework, version 1.3.0: docs/receipts.md has the mapping.
const (
	ocsfVersion  = "1.3.0"
	ocsfCategory = 3 // Identity & Access Management

	ocsfAccountChange = 3001
	ocsfDisable       = 5
	ocsfLock          = 9

	ocsfAuthentication = 3002
	ocsfLogoff         = 2

	ocsfInformational = 1
	ocsfSuccess       = 1
	ocsfFailure       = 2
	ocsfUserTypeUser  = 1
)

type ocsfEvent struct {
	CategoryUID  int            `json:"category_uid"`
	CategoryName string         `json:"category_name"`
	ClassUID     int            `json:"class_uid"`
	ClassName    string         `json:"class_name"`
	ActivityID   int            `json:"activity_id"`
	ActivityName string         `json:"activity_name"`
	TypeUID      int            `json:"type_uid"`
	SeverityID   int            `json:"severity_id"`
	Time         int64          `json:"time"` // ms since 1970
	StatusID     int            `json:"status_id"`
	StatusDetail string         `json:"status_detail,omitempty"`
	Message      string         `json:"message"`
	Metadata     ocsfMetadata   `json:"metadata"`
	User         ocsfUser       `json:"user"`
	Actor        *ocsfActor     `json:"actor,omitempty"`
	Session      *ocsfSession   `json:"session,omitempty"`
	SrcEndpoint  *ocsfEndpoint  `json:"src_endpoint,omitempty"`
	Service      *ocsfService   `json:"service,omitempty"`
	Device       ocsfDevice     `json:"device"`
	Unmapped     map[string]any `json:"unmapped"`
}

type ocsfMetadata struct {
	Version        string      `json:"version"`
	Product        ocsfProduct `json:"product"`
	UID            string      `json:"uid"`
	CorrelationUID string      `json:"correlation_uid"`
}

type ocsfProduct struct {
	Name       string `json:"name"`
	VendorName string `json:"vendor_name"`
	Version    string `json:"version,omitempty"`
}

type ocsfUser struct {
	Name   string `json:"name"`
	TypeID int    `json:"type_id"`
}

type ocsfActor struct {
	User ocsfUser `json:"user"`
}

type ocsfSession struct {
	UID         string `json:"uid"`
	CreatedTime int64  `json:"created_time,omitempty"`
}

type ocsfEndpoint struct {
	IP   string `json:"ip,omitempty"`
	Port int    `json:"port,omitempty"`
	Name string `json:"name,omitempty"`
}

type ocsfService struct {
	Name string `json:"name"`
}

// ocsfDevice is the node that carried the revocation out. 99 is "other", with its name beside it.
type ocsfDevice struct {
	Name   string `json:"name"`
	UID    string `json:"uid"`
	TypeID int    `json:"type_id"`
	Type   string `json:"type"`
}

// ocsfWriter writes a revocation or suspension of somebody as a change of the account, and the end of each session as
// a logoff. A kill changes no account.
type ocsfWriter struct{ a *app }

func (w *ocsfWriter) end() error { return nil }

func (w *ocsfWriter) write(r revoke.Receipt) error {
	if e, ok := accountChange(r); ok {
		if err := w.a.printJSON(e); err != nil {
			return err
		}
	}
	for _, s := range r.Sessions {
		if err := w.a.printJSON(logoff(r, s)); err != nil {
			return err
		}
	}
	return nil
}

func ocsfBase(r revoke.Receipt, class int, className string, activity int, activityName, uid string) ocsfEvent {
	e := ocsfEvent{
		CategoryUID: ocsfCategory, CategoryName: "Identity & Access Management",
		ClassUID: class, ClassName: className, ActivityID: activity, ActivityName: activityName, TypeUID: class*100 + activity,
		SeverityID: ocsfInformational, StatusID: ocsfSuccess,
		Metadata: ocsfMetadata{ocsfVersion, ocsfProduct{"pgedge", "pgedge", r.Version}, uid, r.Revocation},
		Device:   ocsfDevice{r.Node, r.Node + "." + r.Boot, 99, "Database proxy"},
		Unmapped: map[string]any{"verb": r.Verb, "scope": r.Scope, "reason": r.Reason, "source": r.Source, "seq": r.Seq, "epoch": r.Epoch, "superseded_by": r.SupersededBy, "stage": r.Stage},
	}
	if r.Actor != "" {
		e.Actor = &ocsfActor{ocsfUser{r.Actor, ocsfUserTypeUser}}
	}
	return e
}

// accountChange is about principals and roles: other scopes name no account, and are told by the sessions they ended.
func accountChange(r revoke.Receipt) (ocsfEvent, bool) {
	scope, err := revoke.ParseScope(r.Scope)
	if err != nil || scope.Kind != revoke.ScopePrincipal && scope.Kind != revoke.ScopeRole {
		return ocsfEvent{}, false
	}
	activity, name := ocsfDisable, "Disable"
	switch r.Verb {
	case revoke.VerbRevoke.String():
	case revoke.VerbSuspend.String():
		activity, name = ocsfLock, "Lock"
	default:
		return ocsfEvent{}, false
	}
	e := ocsfBase(r, ocsfAccountChange, "Account Change", activity, name, strings.Join([]string{r.Revocation, r.Node, r.Boot}, "."))
	e.Time = r.ReceivedAt.UnixMilli()
	e.User = ocsfUser{scope.Name, ocsfUserTypeUser}
	e.Message = fmt.Sprintf("%s of %s carried out by node %s: %s matched, %d not seen gone", r.Verb, scope, r.Node, count(r.Matched, "session", "sessions"), r.Unverified)
	e.Unmapped["matched"], e.Unmapped["unverified"] = r.Matched, r.Unverified
	e.Unmapped["cut_us"], e.Unmapped["closed_us"], e.Unmapped["verified_us"] = r.CutUS, r.ClosedUS, r.VerifiedUS
	return e, true
}

func logoff(r revoke.Receipt, s revoke.SessionReceipt) ocsfEvent {
	e := ocsfBase(r, ocsfAuthentication, "Authentication", ocsfLogoff, "Logoff", strings.Join([]string{r.Revocation, r.Node, r.Boot, s.ID}, "."))
	e.Time = r.ReceivedAt.Add(time.Duration(r.CutUS) * time.Microsecond).UnixMilli()
	e.User = ocsfUser{s.Principal, ocsfUserTypeUser}
	e.Session = &ocsfSession{UID: s.ID}
	if !s.Since.IsZero() {
		e.Session.CreatedTime = s.Since.UnixMilli()
	}
	e.SrcEndpoint = endpoint(s.Client)
	e.Service = &ocsfService{"postgresql/" + s.Database}
	e.Message = fmt.Sprintf("session of %s ended by %s; backend %s, transaction %s", s.Principal, r.Verb, s.Backend, s.Xact)
	if !s.Verified {
		// The client was cut off all the same: what is not proven is the end of its backend.
		e.StatusID, e.StatusDetail = ocsfFailure, "the backend was not seen gone: "+s.Why
	}
	for key, v := range map[string]any{
		"role": s.Role, "application": s.Application, "state": s.State, "cut": s.Cut, "backend_pid": s.BackendPID, "backend_start": s.BackendStart,
		"backend": s.Backend, "verified": s.Verified, "xact": s.Xact, "more_possible": s.MorePossible, "bytes_after_cut": s.BytesAfter, "sqlstate": s.SQLState,
	} {
		e.Unmapped[key] = v
	}
	return e
}

func endpoint(client string) *ocsfEndpoint {
	host, port, err := net.SplitHostPort(client)
	if err != nil {
		if client == "" {
			return nil
		}
		return &ocsfEndpoint{Name: client} // a unix socket
	}
	n, _ := strconv.Atoi(port) // 0 is left out
	return &ocsfEndpoint{IP: host, Port: n}
}
