package pgserver

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Database is made in every server. Everybody may create objects in its schema public, and tables that the
// superuser makes there are open to everybody, so that a test needs no GRANTs.
const Database = "app"

const superuser = "postgres"

// Role is one login role that every server has.
type Role struct {
	Name   string
	Method string // how pg_hba.conf authenticates it over TCP
	// Grants are the predefined roles it is a member of.
	Grants []string
}

// Roles are the login roles every server has beside the superuser; Password gives their passwords. None of them
// is a superuser.
var Roles = []Role{
	{Name: "alice", Method: "scram-sha-256"},
	{Name: "bob", Method: "scram-sha-256"},
	{Name: "carol", Method: "scram-sha-256"},
	{Name: "md5user", Method: "md5"},
	{Name: "clearuser", Method: "password"},
	{Name: "trustuser", Method: "trust"},
	// What the README tells people to create: enough to terminate backends and to see that they are gone.
	{Name: "pgedge_control", Method: "scram-sha-256", Grants: []string{"pg_signal_backend", "pg_read_all_stats"}},
	// May terminate but cannot see: Postgres hides other people's ports, states and start times from it.
	{Name: "pgedge_weak", Method: "scram-sha-256", Grants: []string{"pg_signal_backend"}},
}

// Password returns the password of a standard role: "control-secret" for pgedge_control, "weak-secret" for
// pgedge_weak, else the name and "-secret".
func Password(role string) string {
	return strings.TrimPrefix(role, "pgedge_") + "-secret"
}

// standardSQL makes the roles. It runs once per template directory.
func standardSQL() []string {
	sql := []string{"SET password_encryption = 'scram-sha-256'", alterPassword(superuser)}
	for _, r := range Roles {
		encryption := "scram-sha-256"
		if r.Method == "md5" {
			encryption = "md5" // The method md5 accepts a SCRAM verifier too, and would then ask for SCRAM.
		}
		sql = append(sql,
			"SET password_encryption = '"+encryption+"'",
			"CREATE ROLE "+ident(r.Name)+" LOGIN",
			alterPassword(r.Name))
		for _, g := range r.Grants {
			sql = append(sql, "GRANT "+ident(g)+" TO "+ident(r.Name))
		}
	}
	return append(sql, "CREATE DATABASE "+ident(Database))
}

// databaseSQL runs once in Database.
func databaseSQL() []string {
	return []string{
		"GRANT ALL ON SCHEMA public TO PUBLIC",
		"ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO PUBLIC",
		"ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON SEQUENCES TO PUBLIC",
	}
}

func alterPassword(role string) string {
	return "ALTER ROLE " + ident(role) + " PASSWORD '" + Password(role) + "'"
}

func ident(name string) string { return pgx.Identifier{name}.Sanitize() }

// writeHBA replaces pg_hba.conf. Only the superuser is trusted, and only over the unix socket, whose directory
// nobody else may enter.
func writeHBA(dataDir string, who *owner, extra []string) error {
	lines := append([]string{}, extra...)
	lines = append(lines, "local all "+superuser+" trust")
	for _, r := range Roles {
		lines = append(lines, "local all "+r.Name+" "+r.Method, "host all "+r.Name+" all "+r.Method)
	}
	lines = append(lines, "local all all scram-sha-256", "host all all all scram-sha-256")
	return writeOwned(dataDir+"/pg_hba.conf", []byte(strings.Join(lines, "\n")+"\n"), who)
}

// Connect opens a superuser connection over the unix socket. The caller closes it.
func (s *Server) Connect(ctx context.Context, db string) (*pgx.Conn, error) {
	// Everything is set by name, so that PG* variables of the environment have nothing to fill in.
	cfg, err := pgx.ParseConfig("sslmode=disable")
	if err != nil {
		return nil, fmt.Errorf("cannot make the superuser's configuration: %w", err)
	}
	cfg.Host, cfg.Port, cfg.User, cfg.Password, cfg.Database = s.SocketDir, uint16(s.Port), s.Superuser, "", db
	cfg.TLSConfig, cfg.Fallbacks = nil, nil
	cfg.RuntimeParams = map[string]string{"application_name": "pgserver"}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("cannot connect as %s: %w", s.Superuser, err)
	}
	return conn, nil
}

// Exec runs statements in Database as the superuser, each in its own transaction, and stops at the first error.
func (s *Server) Exec(ctx context.Context, sql ...string) error { return s.exec(ctx, Database, sql) }

func (s *Server) exec(ctx context.Context, db string, sql []string) error {
	conn, err := s.Connect(ctx, db)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	for _, q := range sql {
		// The simple protocol: many utility statements cannot be prepared.
		if _, err := conn.Exec(ctx, q, pgx.QueryExecModeSimpleProtocol); err != nil {
			return fmt.Errorf("cannot run %q: %w", q, err)
		}
	}
	return nil
}
