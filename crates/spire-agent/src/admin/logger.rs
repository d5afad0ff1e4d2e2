//! `spire.api.agent.logger.v1.Logger`

use std::sync::Arc;

use ah_spire_telemetry::{Log, level_asked_for};
use ah_spire_wire::agent::logger::logger_server::Logger as Service;
use ah_spire_wire::agent::logger::{GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest};
use ah_spire_wire::types::{LogLevel, Logger};
use tonic::{Request, Response, Status};

use crate::metrics::OpenCalls;

pub(super) struct Loggers {
    log: Arc<Log>,
    calls: OpenCalls,
}

impl Loggers {
    pub(super) fn new(log: Arc<Log>, calls: OpenCalls) -> Self {
        Self { log, calls }
    }

    fn set(&self, level: LogLevel) -> Result<Response<Logger>, Status> {
        let before = self.log.current();
        self.log
            .set(level)
            .map_err(|why| Status::internal(format!("failed to set the log level: {why}")))?;
        tracing::info!(
            from = before.as_str_name(),
            to = level.as_str_name(),
            "the log level was changed on the admin socket"
        );
        Ok(self.told())
    }

    fn told(&self) -> Response<Logger> {
        Response::new(Logger {
            current_level: self.log.current().into(),
            launch_level: self.log.launch().into(),
        })
    }
}

#[tonic::async_trait]
impl Service for Loggers {
    async fn get_logger(
        &self,
        _request: Request<GetLoggerRequest>,
    ) -> Result<Response<Logger>, Status> {
        let _open = self.calls.begin();
        Ok(self.told())
    }

    async fn set_log_level(
        &self,
        request: Request<SetLogLevelRequest>,
    ) -> Result<Response<Logger>, Status> {
        let _open = self.calls.begin();
        self.set(level_asked_for(request.into_inner().new_level)?)
    }

    async fn reset_log_level(
        &self,
        _request: Request<ResetLogLevelRequest>,
    ) -> Result<Response<Logger>, Status> {
        let _open = self.calls.begin();
        self.set(self.log.launch())
    }
}
