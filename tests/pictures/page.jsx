// A dashboard's panels from their JSON and data frames, put together from Grafana's published components.

import { FieldConfigOptionsRegistry, createDataFrame, createTheme, dateTime, applyFieldOverrides, cacheFieldDisplayNames,
  getDisplayValueAlignmentFactors, getFieldDisplayValues, EventBusSrv, ThemeContext } from '@grafana/data';
import { BigValue, GlobalStyles, PanelChrome, PanelContextProvider, TimeSeries, VizRepeater } from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';
import { createRoot } from 'react-dom/client';

const { title, labels, from_ms, to_ms, range, panels, cell } = window.dashboard;
const timeZone = 'utc';
const theme = createTheme({ colors: { mode: 'dark' } });
const [from, to] = [dateTime(from_ms), dateTime(to_ms)];
const timeRange = { from, to, raw: { from, to } };
const asItIs = (text) => text;

/** The properties that a panel's defaults and overrides use, which Grafana's plugins would register. */
function propertiesOf({ defaults, overrides }) {
  const { custom = {}, ...standard } = defaults;
  const ids = new Set([...Object.keys(standard), ...Object.keys(custom).map((name) => `custom.${name}`),
    ...overrides.flatMap(({ properties }) => properties.map(({ id }) => id))]);
  return new FieldConfigOptionsRegistry(() => [...ids].map((id) => ({
    id, name: id, path: id.replace(/^custom\./, ''), isCustom: id.startsWith('custom.'), process: asItIs, shouldApply: () => true,
  })));
}

function framesOf({ frames, fieldConfig }) {
  const data = frames.map((frame) => createDataFrame(frame));
  const fieldConfigRegistry = propertiesOf(fieldConfig);
  const made = applyFieldOverrides({ data, fieldConfig, fieldConfigRegistry, replaceVariables: asItIs, theme, timeZone });
  cacheFieldDisplayNames(made);
  return made;
}

function Stat({ panel, data, width, height }) {
  const { options, fieldConfig } = panel;
  const getValues = () => getFieldDisplayValues({
    data, fieldConfig, reduceOptions: options.reduceOptions, replaceVariables: asItIs, theme, timeZone,
    sparkline: options.graphMode !== 'none',
  });
  const value = ({ value: { display, sparkline }, count, ...place }) => (
    <BigValue {...options} {...place} value={display} sparkline={sparkline} count={count} theme={theme}
      disableWideLayout={!options.wideLayout} />
  );
  return <VizRepeater getValues={getValues} getAlignmentFactors={getDisplayValueAlignmentFactors} renderValue={value}
    source={data} renderCounter={0} width={width} height={height} orientation={options.orientation} autoGrid />;
}

function Table({ panel, data: [frame], width, height }) {
  const { options, fieldConfig } = panel;
  return <TableNG data={frame} width={width} height={height} fieldConfig={fieldConfig} cellHeight={options.cellHeight}
    noHeader={!options.showHeader} showTypeIcons={false} resizable timeRange={timeRange} enableVirtualization={false} />;
}

function Series({ panel, data, width, height }) {
  // Grafana cuts the last time on the axis where the range ends just after it; here is no later refresh that shows it.
  const pad = (config) => { config.setPadding([null, 36, null, null]); };
  return <TimeSeries frames={data} width={width} height={height} timeRange={timeRange} timeZone={timeZone}
    legend={panel.options.legend} options={panel.options}>{pad}</TimeSeries>;
}

const KINDS = { stat: Stat, table: Table, timeseries: Series };

function Panel({ panel, width, height }) {
  const data = framesOf(panel);
  const isEmpty = !data.some(({ fields, length }) => fields.length && length);
  const Kind = KINDS[panel.type];
  return (
    <PanelChrome title={panel.title} description={panel.description} width={width} height={height}>
      {(inner, innerHeight) => isEmpty
        ? <div className="empty" style={{ height: innerHeight }}>{panel.fieldConfig.defaults.noValue ?? 'No data'}</div>
        : <Kind panel={panel} data={data} width={inner} height={innerHeight} />}
    </PanelChrome>
  );
}

function Place({ panel }) {
  const { x, y, w, h } = panel.gridPos;
  const [width, height] = [w * cell.width - cell.gap, h * cell.height - cell.gap];
  return (
    <div style={{ position: 'absolute', left: x * cell.width, top: y * cell.height, width, height }}>
      {panel.type === 'row' ? <h5 className="row">{panel.collapsed ? '›' : '⌄'} {panel.title}</h5> : <Panel panel={panel} width={width} height={height} />}
    </div>
  );
}

const context = { eventsScope: 'page', eventBus: new EventBusSrv(), sync: () => 0 };
const style = `
  body { background: ${theme.colors.background.canvas}; margin: 0; overflow: hidden; }
  #root { margin: 0 ${cell.gap}px; }
  header { height: ${cell.header}px; display: flex; align-items: center; gap: 24px; }
  header h3 { margin: 0; flex: 1; }
  header span { color: ${theme.colors.text.secondary}; }
  .row { line-height: ${cell.height - cell.gap}px; margin: 0; }
  .empty { display: flex; align-items: center; justify-content: center; color: ${theme.colors.text.secondary}; }`;

createRoot(document.getElementById('root')).render(
  <ThemeContext.Provider value={theme}>
    <GlobalStyles />
    <style>{style}</style>
    <PanelContextProvider value={context}>
      <header>
        <h3>{title}</h3>
        {Object.entries(labels).map(([label, text]) => <div key={label}><span>{label}</span> {text}</div>)}
        <div><span>{range}, UTC</span></div>
      </header>
      <main style={{ position: 'relative' }}>
        {panels.map((panel, index) => <Place key={index} panel={panel} />)}
      </main>
    </PanelContextProvider>
  </ThemeContext.Provider>,
);
