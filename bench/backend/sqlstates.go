package backend

// The SQLSTATEs that this server uses, from Appendix A of the PostgreSQL documentation.
const (
	sqlAdminShutdown       = "57P01"
	sqlQueryCanceled       = "57014"
	sqlFeatureNotSupported = "0A000"
	sqlProtocolViolation   = "08P01"
	sqlNoSuchStatement     = "26000"
	sqlNoSuchPortal        = "34000"
)
