package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"pgedge/revoke"
)

// loginSQL reads whether a role may log in, and its comment, which is where marks are kept.
const loginSQL = `SELECT rolcanlogin, coalesce(shobj_description(oid, 'pg_authid'), '') FROM pg_roles WHERE rolname = $1`

// markedSQL lists the roles with a mark. Comments on roles are the whole server's.
const markedSQL = `
SELECT r.rolname, d.description
FROM pg_shdescription d JOIN pg_roles r ON r.oid = d.objoid
WHERE d.classoid = 'pg_authid'::regclass AND position($1 IN d.description) > 0`

// noLogin sets a role NOLOGIN and leaves the mark of it, in one transaction. A role that cannot log in and bears no
// mark was like that before and is left as it is.
func (v *visit) noLogin(ctx context.Context, role string, mark revoke.LoginMark) (set bool, err error) {
	switch {
	case role == v.control:
		return false, errors.New("it is the control role of this node")
	case !isText(role):
		return false, errors.New("its name is not valid text")
	}
	list, err := rows(ctx, v.conn, loginSQL, role)
	if err != nil {
		return false, err
	}
	if len(list) == 0 {
		return false, nil // nobody can log in as it
	}
	can := list[0][0] == "t"
	comment, old, marked := revoke.SplitLoginMark(list[0][1])
	switch {
	case !can && !marked:
		return false, nil
	case !can && old == mark:
		return true, nil
	}
	alter := ""
	if can {
		alter = "ALTER ROLE " + quoteIdent(role) + " NOLOGIN; "
	}
	// Several statements of one simple query are one transaction.
	err = v.exec(ctx, alter+"COMMENT ON ROLE "+quoteIdent(role)+" IS "+quoteLiteral(mark.AppendTo(comment)))
	return err == nil, err
}

// RestoreLogins gives LOGIN back to the roles whose marks may says are undone, and takes the marks away. It returns
// the roles it has restored; the error is about those it could not.
func (e *Engine) RestoreLogins(ctx context.Context, server string, may func(role string, m revoke.LoginMark) bool) (restored []string, err error) {
	err = e.onSweepLine(ctx, server, func(ctx context.Context, v *visit) error {
		list, err := rows(ctx, v.conn, markedSQL, revoke.LoginMarkBegin)
		if err != nil {
			return fmt.Errorf("cannot list the roles that were set NOLOGIN: %w", err)
		}
		var problems []error
		for _, row := range list {
			comment, mark, ok := revoke.SplitLoginMark(row[1])
			if !ok || !may(row[0], mark) {
				continue
			}
			is := "NULL"
			if comment != "" {
				is = quoteLiteral(comment)
			}
			if err := v.exec(ctx, "ALTER ROLE "+quoteIdent(row[0])+" LOGIN; COMMENT ON ROLE "+quoteIdent(row[0])+" IS "+is); err != nil {
				problems = append(problems, fmt.Errorf("cannot give role %q LOGIN back: %w", row[0], err))
				continue
			}
			restored = append(restored, row[0])
		}
		return errors.Join(problems...)
	})
	return restored, err
}

// exec runs statements without parameters, all or none.
func (v *visit) exec(ctx context.Context, sql string) error {
	ctx, cancel := context.WithTimeout(ctx, controlStatementTimeout)
	defer cancel()
	_, err := v.conn.Exec(ctx, sql).ReadAll()
	return err
}

func quoteIdent(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

// quoteLiteral rests on standard_conforming_strings, which the control connection sets.
func quoteLiteral(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
